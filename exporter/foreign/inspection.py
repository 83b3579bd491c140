"""`python -m exporter inspect MODEL.onnx`: what is in an ONNX file, and whether ITAE can be put into it."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.build.fusion import describe
from runtime.contract.console import Parser, run
from runtime.contract.errors import plain

if TYPE_CHECKING:
    from exporter.foreign.trial_build import TrialBuild

DESCRIPTION = """\
Show what is in an ONNX file: inputs and outputs, each attention with its sizes, its scale, its mask and the form that
matched; and whether `python -m exporter --onnx` can put ITAE into it, or why not. The exit code is 0 if it can, 1 if it
can't, 2 if the file can't be read. The graph is run once, on noise, by ONNX Runtime on the CPU.
"""


def main(argv: Sequence[str]) -> int:
    """Run the command."""

    def body() -> int:
        a = parser().parse_args(list(argv))
        from exporter.declaration import Sizes
        from exporter.foreign.onnx_file import open_onnx
        from exporter.foreign.probe import Probe
        from exporter.foreign.survey import survey

        size = None if a.image_size is None else Sizes("N|HxW").parse("--image-size", a.image_size)
        if a.build:
            from exporter.foreign.trial_build import require_builder, try_build

            require_builder()
        file = open_onnx(a.model)
        with tempfile.TemporaryDirectory(prefix="itae-") as folder:
            found = survey(file, Probe(file, Path(folder)), (size, size) if isinstance(size, int) else size)
            trial = try_build(found, Path(folder)) if a.build else None
        record = as_record(found, a.prefix_tokens) | {"build": _build_record(trial)}
        print(json.dumps(record, indent=2) if a.json else as_text(record))  # noqa: T201
        return 0 if record["refused"] is None else 1

    return run("exporter inspect", body)


def parser() -> argparse.ArgumentParser:
    """The command's parser."""
    p = Parser(prog="python -m exporter inspect", description=DESCRIPTION, allow_abbrev=False)
    p.add_argument("model", metavar="MODEL.onnx", type=Path, help="the file; its external data lies beside it")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("--image-size", metavar="N|HxW", help="the size to run it at, where height and width are dynamic")
    p.add_argument(
        "--prefix-tokens",
        metavar="K",
        type=int,
        help="tokens before the patches, where it can't be seen (CLS, registers)",
    )
    p.add_argument(
        "--build",
        action="store_true",
        help="build an engine by TensorRT-RTX, which needs no GPU, and say how many attentions are one kernel",
    )
    return p


def _build_record(trial: TrialBuild | None) -> dict[str, Any] | None:
    """The build for JSON; None if none was asked for."""
    if trial is None:
        return None
    fusion = trial.fusion
    return {
        "builder": trial.builder,
        "refused": trial.refused,
        "bytes": trial.plan_bytes,
        "seconds": round(trial.seconds, 1),
        "fusion": None if fusion is None else fusion.model_dump(mode="json"),
        "fused": None if trial.refused is not None else describe(fusion),
    }


def as_record(found: Any, prefix: int | None = None) -> dict[str, Any]:  # noqa: ANN401  # `Survey`, imported late
    """The survey for JSON."""
    from exporter.foreign.survey import refusal

    file, sites = found.file, found.sites
    measured = {id(one.site): one for one in sites}
    rows = []
    layers = {id(one): layer for layer, one in enumerate(found.backbone)}
    for site in found.found.sites:
        one = measured.get(id(site))
        row: dict[str, Any] = {
            "node": site.name,
            "form": site.form,
            "layer": None if one is None else layers.get(id(one)),
        }
        if one is not None:
            row |= {
                "kind": one.kind,
                "heads": one.heads,
                "head_dim": one.head_dim,
                "queries": one.queries,
                "tokens": one.tokens,
                "scale": one.scale,
                "mask": one.mask,
                "residual": one.residual,
            }
        rows.append(row)
    return {
        "model": str(file.path),
        "bytes": file.bytes,
        "external_data": [one.name for one in file.data],
        "sha256": file.sha256,
        "producer": file.producer,
        "opset": file.opset,
        "domains": sorted({node.domain or "ai.onnx" for node in file.model.graph.node}),
        "nodes": len(file.model.graph.node),
        "precision": precision_of(file.model),
        "inputs": [vars(one) | {"shape": list(one.shape)} for one in found.inputs],
        "outputs": [vars(one) | {"shape": list(one.shape)} for one in found.outputs],
        "picture": None if found.picture is None else found.picture.name,
        "image_size": found.image_size,
        "dynamic_size": found.is_dynamic,
        "layers": len(found.backbone),
        "grid": found.grid,
        "prefix_tokens": prefix if prefix is not None else found.prefix,
        "sites": rows,
        "near_misses": [vars(one) for one in found.found.near_misses[:5]],
        "taken_out": list(file.taken_out),
        "in_the_way": obstacles(found),
        "refused": refusal(found, prefix),
    }


def precision_of(model: Any) -> str:  # noqa: ANN401  # onnx.ModelProto, imported late
    """The data type of most weights."""
    import onnx

    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        sizes[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += count
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def obstacles(found: Any) -> list[str]:  # noqa: ANN401
    """The things that may stand in the way of an engine, in clauses."""
    ops = Counter(node.op for node in found.graph.nodes)
    said = []
    if any(node.op == "Resize" and node.attrs.get("antialias") for node in found.graph.nodes):
        said.append("Resize with antialias, which TensorRT does not take")
    whole = sum(ops[op] for op in ("LayerNormalization", "SkipLayerNormalization"))
    if found.file.opset < 17 and not whole and ops["Sqrt"] and "float16" in precision_of(found.file.model):
        said.append("LayerNorm written out below opset 17, which overflows in half precision")
    if ops["IsNaN"]:
        said.append("a guard against NaN behind each softmax, which keeps TensorRT from one kernel per attention")
    if ops["SequenceAt"] or ops["If"]:
        said.append("If or operators on sequences, which TensorRT takes in part")
    if any(site.fused is not None for site in found.found.sites):
        said.append("attention as one operator, which TensorRT takes in half precision alone, or not at all")
    if ops["NonZero"]:
        said.append("NonZero, whose result has no size that is known before")
    return said


def as_text(record: dict[str, Any]) -> str:
    """The record as a table for people."""

    def shape(tensor: dict[str, Any]) -> str:
        return f"{tensor['name']} {tensor['dtype']} ({', '.join(map(str, tensor['shape']))})"

    size = f"{record['image_size'][0]}x{record['image_size'][1]}" if record["image_size"] else "not run"
    grid = f"{record['grid'][0]}x{record['grid'][1]} patches" if record["grid"] else "patches not seen"
    lines = [
        f"{record['model']}: {record['bytes'] / 1e6:.1f} MB, {record['precision']}, opset {record['opset']}, "
        f"{record['nodes']} nodes, by {record['producer']}",
        *(f"  input    {shape(one)}{' <- pictures' * (one['name'] == record['picture'])}" for one in record["inputs"]),
        *(f"  output   {shape(one)}" for one in record["outputs"]),
        f"  run at   {size}: {grid}, tokens before them: {record['prefix_tokens']}"
        f"{'; height and width are dynamic' * record['dynamic_size']}",
        f"  layers   {record['layers']}",
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in record["sites"]:
        alike = {key: value for key, value in row.items() if key not in ("node", "layer", "residual")}
        groups.setdefault(json.dumps(alike), []).append(row)
    for rows in groups.values():
        row = rows[0]
        span = str(row["layer"]) if len(rows) == 1 else f"{row['layer']}-{rows[-1]['layer']}"
        where = f"{len(rows)} x" if row["layer"] is None else f"layer {span}"
        sizes = ""
        if "kind" in row:
            scale = "of several numbers" if row["scale"] is None else f"{row['scale']:.4g}"
            sizes = (
                f"{row['kind']}, {row['heads']} heads of {row['head_dim']}, {row['tokens']} tokens, scale {scale}, "
                f"mask: {row['mask']}; "
            )
        lines.append(f"  {where:<8} {sizes}{row['form']}; such as {row['node']!r}")
    lines += [
        f"  near     {miss['node']}, after {miss['depth']} matching nodes: {miss['reason']}"
        for miss in record["near_misses"]
    ]
    lines += [f"  training {one}" for one in record["taken_out"]]
    lines += [f"  engine   {one}" for one in record["in_the_way"]]
    if (built := record["build"]) is not None:
        taken = f"taken, {built['bytes'] / 1e6:.1f} MB in {built['seconds']} s; {built['fused']}"
        lines.append(f"  build    {built['builder']}: {taken if built['refused'] is None else built['refused']}")
    can = "ITAE can be put into it: python -m exporter --onnx"
    lines.append(f"  refused: {record['refused']}" if record["refused"] else f"  {can} {record['model']} --out X.onnx")
    return "\n".join(map(plain_line, lines))


def plain_line(line: str) -> str:
    """A line that steers no terminal, whatever names a file holds; its indent stays."""
    indent = len(line) - len(line.lstrip(" "))
    return " " * indent + " ".join(plain(word) for word in line.strip(" ").split(" "))
