"""`scripts/bench foreign`: exports of timm and transformers as they are, with ITAE, and with the faster passes."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from exporter.foreign.delivery import deliver
from exporter.foreign.request import ForeignSpec
from exporter.methods.itae.options import ItaeConfig
from exporter.steps import Progress
from runtime.contract.console import Parser
from runtime.contract.errors import OutputFileError, UsageError
from runtime.contract.machine import usable_cores
from scripts.benchmark.measure import orders, round_up
from scripts.benchmark.report import machine

FORMS = ("as it is", "with ITAE", "with ITAE, --faster")
SIZES = {"tiny": (32, 2, 2), "vits": (384, 12, 6), "vitb": (768, 12, 12)}
"""Width, layers and heads."""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/bench foreign",
        description="Time the ONNX exports of timm's and transformers' ViT as they are, with ITAE in the last layer, "
        "and with ITAE and the passes that only make them faster, on ONNX Runtime, in turns. Patches of 16, random "
        "weights and pictures; the CLS token alone is the output. Markdown on stdout. Some 3 minutes on two cores.",
    )
    options.add_argument("--size", choices=[*SIZES], default="vits", help="of the model (default: %(default)s)")
    options.add_argument("--image-size", type=int, default=224, help="pixels, a multiple of 16 (default: %(default)s)")
    options.add_argument("--batch", default="1,8", help="images a run, comma-separated (default: %(default)s)")
    options.add_argument(
        "--rounds", type=int, default=24, help="runs of each; rounded up to whole cycles of orders (default: 24)"
    )
    options.add_argument(
        "--file", metavar="FILE.onnx", type=Path, action="append", default=[],
        help="a ready export that takes such pictures, timed too; may be given again",
    )  # fmt: skip
    options.add_argument("--json", metavar="FILE", type=Path, help="write every time there too")
    return options


def bench(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    given = parser().parse_args(argv)
    try:
        batches = [int(part) for part in given.batch.split(",")]
    except ValueError:
        raise UsageError(f"--batch {given.batch}: must be numbers with commas") from None
    if min(*batches, given.rounds) < 1:
        raise UsageError("--batch and --rounds must be 1 or more")
    if given.image_size < 32 or given.image_size % 16:
        raise UsageError(f"--image-size {given.image_size}: must be a multiple of 16, 32 or more")
    if given.json is not None and not given.json.parent.is_dir():
        raise OutputFileError(f"can't write {given.json}: there is no folder {given.json.parent}; make it first")
    with tempfile.TemporaryDirectory(prefix="itae-bench-") as folder:
        found = {}
        for library, make in libraries().items():
            source = Path(folder) / f"{library}.onnx"
            _export(make(given.size, given.image_size).eval(), given.image_size, source)
            found[library] = times(source, given.image_size, batches, given.rounds, Path(folder))
        for file in given.file:
            found[file.stem] = times(file, given.image_size, batches, given.rounds, Path(folder))
    print("\n".join(as_markdown(given, found)))
    if given.json is not None:
        given.json.write_text(json.dumps({"size": given.size, "seconds": found}) + "\n", encoding="utf-8")
    return 0


def libraries() -> dict[str, Callable[[str, int], torch.nn.Module]]:
    """Makers of a model by size and pixels; without timm where it does not import."""
    found: dict[str, Callable[[str, int], torch.nn.Module]] = {"transformers": _of_transformers}
    try:
        import timm.models.vision_transformer  # noqa: F401
    except Exception as error:  # of torchvision too, which it needs
        print(f"bench: going on without timm, which does not import: {error}", file=sys.stderr)
    else:
        found["timm"] = _of_timm
    return found


def _of_timm(size: str, pixels: int) -> torch.nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    width, depth, heads = SIZES[size]
    made: torch.nn.Module = VisionTransformer(
        img_size=pixels, patch_size=16, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
    )
    return made


class _ClsToken(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.model(pixel_values).last_hidden_state
        return tokens[:, 0]


def _of_transformers(size: str, pixels: int) -> torch.nn.Module:
    import transformers

    width, depth, heads = SIZES[size]
    config = transformers.ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width,
        patch_size=16, image_size=pixels,
    )  # fmt: skip
    return _ClsToken(transformers.ViTModel(config, add_pooling_layer=False))


def times(
    source: Path, pixels: int, batches: Sequence[int], rounds: int, folder: Path
) -> dict[int, dict[str, list[float]]]:
    """Seconds of every round by batch and form."""
    sessions: dict[str, Any] = {FORMS[0]: _session(source)}
    itae = ItaeConfig(source="residual", threshold="mad:5", side="high")
    for form, faster in zip(FORMS[1:], (False, True), strict=True):
        out = folder / f"itae-{source.stem}-{'faster' if faster else 'plain'}.onnx"
        spec = ForeignSpec(onnx=source, out=out, itae=itae, faster=faster, parity_samples=2)
        deliver(spec, Progress(quiet=True))
        sessions[form] = _session(out)
    found: dict[int, dict[str, list[float]]] = {}
    name = sessions[FORMS[0]].get_inputs()[0].name
    turns = orders(FORMS)
    for batch in batches:
        images = np.random.default_rng(0).standard_normal((batch, 3, pixels, pixels)).astype(np.float32)
        seconds: dict[str, list[float]] = {form: [] for form in FORMS}
        for form in FORMS:
            sessions[form].run(None, {name: images})  # warm
        for number in range(round_up(rounds, len(FORMS))):
            for form in turns[number % len(turns)]:
                start = time.perf_counter()
                sessions[form].run(None, {name: images})
                seconds[form].append(time.perf_counter() - start)
        found[batch] = seconds
    return found


def _export(model: torch.nn.Module, pixels: int, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 3, pixels, pixels),), path, dynamo=False, opset_version=17,
            input_names=["pixel_values"], output_names=["embedding"],
            dynamic_axes={"pixel_values": {0: "batch"}, "embedding": {0: "batch"}},
        )  # fmt: skip


def _session(path: Path) -> Any:  # noqa: ANN401  # onnxruntime ships no types
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3
    # Threads that spin after a run would take the cores of the next session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def as_markdown(given: Any, found: dict[str, dict[int, dict[str, list[float]]]]) -> list[str]:  # noqa: ANN401  # argparse's
    """The table: a row for each library's file in each form."""
    here = machine(usable_cores(), None)
    batches = [*next(iter(found.values()))]
    heads = [f"batch {batch}, ms an image | of the file as it is" for batch in batches]
    lines = [
        f"{given.size} at {given.image_size} pixels, ITAE in the last layer (residual mad:5); {here['cpu']}, "
        f"{here['threads']} threads; medians (quartiles) of {round_up(given.rounds, len(FORMS))} rounds in turns.",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (2 * len(batches) + 1) + "|",
    ]
    for library, of_batch in found.items():
        for form in FORMS:
            cells = []
            for batch, seconds in of_batch.items():
                ratios = [one / other for one, other in zip(seconds[form], seconds[FORMS[0]], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                cells.append(f"{statistics.median(seconds[form]) / batch * 1e3:.1f}")
                cells.append("1" if form == FORMS[0] else f"{middle:.3f} ({low:.3f}-{high:.3f})")
            lines.append(f"| {library}, {form} | {' | '.join(cells)} |")
    return lines
