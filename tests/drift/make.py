"""Makes the golden embeddings that show when a new version of a library changes the numbers.

`python tests/drift/make.py` writes `golden.npz`. For each case it holds the outputs of a small seeded model for two
pictures, computed by ONNX Runtime from the exporter's graph; `settings` holds, as JSON, the options of each case, the
SHA-256 of the weights, and the versions of the libraries. Run it only when a change of numbers is meant, and say in the
commit what changed them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import io
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from tiny_dinov2 import MODELS, TinyDinov2, make_tiny, run  # noqa: E402

from exporter.methods.itae import reference  # noqa: E402
from exporter.methods.itae.options import SOURCES, ItaeConfig  # noqa: E402
from exporter.models.weights import hash_parameters, random_tensors  # noqa: E402
from exporter.options import ExportSpec  # noqa: E402
from runtime.contract.atomic import write_atomically  # noqa: E402
from runtime.images.preprocess import preprocess  # noqa: E402

GOLDEN = Path(__file__).parent / "golden.npz"
LIBRARIES = (
    "torch", "transformers", "onnx", "onnxscript", "onnx-graphsurgeon", "onnxruntime", "numpy", "pillow",
)  # fmt: skip
"""What the numbers may depend on."""
LIMITS = {"fp32": 1e-5, "fp16": 2e-3}
"""Largest difference of an element, by precision; rounding alone moves one by a tenth of this (DECISIONS.md)."""

Array = np.ndarray
Outputs = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One option away from the base."""

    model: str = "mlp"
    """Of `tiny_dinov2.MODELS`."""
    itae: Mapping[str, Any] | None = field(default_factory=dict)
    """Options of ITAE that differ from `ITAE`; None: plain DINOv2."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other options of the export."""

    @property
    def spec(self) -> ExportSpec:
        """The export."""
        arch, size = MODELS[self.model]
        itae = None if self.itae is None else ItaeConfig(**(ITAE | self.itae))
        return ExportSpec(
            "unused.onnx", size=arch, weights="random:1", itae=itae, **({"image_size": size} | self.options)
        )


ITAE = {"layers": "all", "source": "residual", "threshold": "ratio:1.1", "side": "high", "attenuate": "min"}
"""The base: finds some patches of the pictures, not all."""
OUTPUTS = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")
CASES = {
    "base": Case(),
    "no ITAE": Case(itae=None),
    "layers last": Case(itae={"layers": "last"}),
    "layers 0,2": Case(itae={"layers": "0,2"}),
    **{f"source {source}": Case(itae={"source": source, "threshold": "zscore:0.8"}) for source in SOURCES},
    "threshold mad": Case(itae={"threshold": "mad:1.5"}),
    "threshold zscore": Case(itae={"threshold": "zscore:0.9"}),
    "threshold absolute": Case(itae={"threshold": "absolute:4.5"}),
    "threshold positions": Case(itae={"threshold": "positions:0,7", "source": None, "side": None}),
    "side low": Case(itae={"threshold": "zscore:0.9", "side": "low"}),
    "side both": Case(itae={"threshold": "zscore:0.9", "side": "both"}),
    "attenuate mask": Case(itae={"attenuate": "mask", "threshold": "ratio:1.2"}),
    "attenuate mean": Case(itae={"attenuate": "mean"}),
    "attenuate scale": Case(itae={"attenuate": "scale:0.1"}),
    "attenuate none": Case(itae={"attenuate": "none"}, options={"outputs": OUTPUTS}),
    "detect-layer 0": Case(itae={"layers": "2", "detect_layer": 0}),
    "size, image-size, pos-embed": Case(
        model="swiglu-reg", itae={"threshold": "zscore:0.9"}, options={"image_size": 42, "pos_embed": "hf"}
    ),
    "precision fp16": Case(options={"precision": "fp16"}),
    "outputs": Case(options={"outputs": OUTPUTS}),
    "pooling cls+mean": Case(options={"pooling": "cls+mean"}),
    "normalize": Case(options={"normalize": True}),
    "no-cls-only": Case(options={"cls_only": False}),
    "input uint8": Case(options={"input": "uint8"}),
    "fit pad": Case(itae={"threshold": "ratio:1.3"}, options={"fit": "pad"}),
    "fit squash": Case(itae={"threshold": "ratio:1.15"}, options={"fit": "squash"}),
    "unfused": Case(options={"unfused": True}),
}
"""By the option that differs. `test_every_option_has_a_case` holds them to the options' declarations."""


def pictures() -> list[Image.Image]:
    """Two pictures, quiet but for some loud places; numpy promises to draw the same numbers for ever."""
    rng = np.random.RandomState(5)
    found = []
    for height, width in ((90, 120), (80, 70)):
        pixels = 128 + 12 * rng.standard_normal((height, width, 3))
        for top, left in ((10, 20), (height - 30, width - 35)):
            pixels[top : top + 20, left : left + 20] = rng.uniform(0, 255, (20, 20, 3))
        found.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return found


def images(spec: ExportSpec) -> Array:
    """The pictures as the runtime hands them to the model, (2, 3, H, W) float32 or (2, H, W, 3) uint8."""
    return np.stack([preprocess(picture, spec.preprocessing()) for picture in pictures()])


class Models:
    """The traced models, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._traced: dict[Any, TinyDinov2] = {}

    def of(self, spec: ExportSpec) -> TinyDinov2:
        """The model of an export's size, image size and position embedding."""
        key = (spec.backbone, spec.height_and_width, spec.pos_embed)
        if key not in self._traced:
            folder = self._folder / f"traced {len(self._traced)}"
            folder.mkdir()
            self._traced[key] = make_tiny(spec.backbone, spec.height_and_width, folder, pos_embed=spec.pos_embed)
        return self._traced[key]

    def run(self, name: str) -> Outputs:
        """The outputs of a case, by ONNX Runtime."""
        spec = CASES[name].spec
        tiny = self.of(spec)
        given = {**CASES[name].options} | {"outputs": spec.outputs, "image_size": spec.image_size}
        return run(tiny.export(spec.itae, self._folder / name, **given), images(spec))

    def eager(self, name: str) -> reference.Eager:
        """The same by eager PyTorch in float64, whatever the precision."""
        spec = CASES[name].spec
        pixels = images(dataclasses.replace(spec, input="float32"))
        return self.of(spec).eager(spec.itae, pixels, spec.pooling, normalize=spec.normalize)


def compare(name: str, got: Outputs, want: Outputs) -> str | None:
    """How the outputs of a case differ from the golden ones; None if they don't."""
    limit = LIMITS[CASES[name].spec.resolved_precision]
    faults = []
    if set(got) != set(want):
        faults.append(f"its outputs are {', '.join(got)}, not {', '.join(want)}")
    for output in sorted(set(got) & set(want)):
        if got[output].shape != want[output].shape:
            faults.append(f"`{output}` is {got[output].shape}, not {want[output].shape}")
        elif got[output].dtype == bool:
            if count := int((got[output] != want[output]).sum()):
                faults.append(f"{count} of {want[output].size} flags differ")
        else:
            off = float(np.abs(got[output].astype(np.float64) - want[output]).max())
            if not off <= limit:
                faults.append(f"`{output}` is off by {off:.2g}, the limit is {limit:g}")
    return "; ".join(faults) or None


def versions() -> dict[str, str]:
    """Of the libraries, without the mark of a build."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in LIBRARIES}


def changed(then: Mapping[str, str]) -> str:
    """What became of the libraries since the golden file was made, in words."""
    now = versions()
    found = [f"{name} {then.get(name)} -> {version}" for name, version in now.items() if then.get(name) != version]
    same = ", ".join(f"{name} {version}" for name, version in now.items() if then.get(name) == version)
    return f"changed: {', '.join(found) or 'no library, so our own code or this CPU'}; the same: {same or 'none'}"


@functools.cache
def weights_sha256() -> dict[str, str]:
    """Of the seeded weights of each model."""
    return {name: hash_parameters(random_tensors(arch, 1)) for name, (arch, _) in MODELS.items()}


def settings() -> dict[str, Any]:
    """What the golden file is made of, as JSON holds it."""
    cases = {name: {"base": ITAE} | dataclasses.asdict(case) for name, case in CASES.items()}
    return json.loads(json.dumps({"cases": cases, "weights_sha256": weights_sha256(), "versions": versions()}))


def read() -> tuple[dict[str, Outputs], dict[str, Any]]:
    """The golden outputs by case, and the settings that they were made with."""
    with np.load(GOLDEN) as file:
        outputs: dict[str, Outputs] = {}
        for key in file.files:
            name, _, output = key.partition("/")
            if output:
                outputs.setdefault(name, {})[output] = file[key]
        return outputs, json.loads(str(file["settings"]))


def write(folder: Path) -> None:
    """Write the golden file; the traced models lie in `folder`."""
    models = Models(folder)
    arrays = {f"{name}/{output}": value for name in CASES for output, value in models.run(name).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, settings=np.array(json.dumps(settings())), **arrays)
    write_atomically(GOLDEN, buffer.getvalue())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
    print(f"{GOLDEN}: {len(CASES)} cases, {GOLDEN.stat().st_size} bytes")  # noqa: T201
