"""The search, the figures, and an int8 export from end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from exporter import ExportSpec, export
from exporter.__main__ import main
from exporter.models.architecture import Architecture
from exporter.models.weights import random_tensors
from exporter.quantization import scales, within_limit
from exporter.quantization.figures import compare
from exporter.result import summary
from exporter.steps import Progress
from runtime.__main__ import main as run_command
from runtime.checks.compare import Way, ways
from runtime.checks.verify import verify
from runtime.contract.errors import InputError, ParityError
from runtime.contract.instructions import has_bf16
from runtime.contract.manifest import Quantization, read_manifest
from scripts.planting.pictures import write_noise

pytestmark = pytest.mark.usefixtures("traced_once")
ARCH = Architecture("small", width=128, heads=2, depth=2)
OPTIONS = {"size": ARCH, "weights": "random:0", "precision": "int8", "image_size": 56, "parity_samples": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = write_noise(tmp_path_factory.mktemp("pictures") / "40", 40, 64)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pictures):
    folder, progress, notes = tmp_path_factory.mktemp("int8"), Progress(quiet=True), []
    spec = ExportSpec(folder / "m.onnx", calibrate_images=pictures, min_cosine=0.99, **OPTIONS)
    progress.note = notes.append
    return spec.path, export(spec, progress), notes


@pytest.fixture(scope="module")
def published(exported):
    return exported[:2]


def test_what_can_not_be_read_and_too_few_pictures_are_noted(exported):
    _, result, notes = exported
    calibrated = result.manifest.quantization.calibrated
    assert any("1 pictures can't be read" in note for note in notes)
    assert any(
        note.startswith(f"{calibrated} pictures chose the scales of int8") and "give 200 or more" in note
        for note in notes
    )


def test_the_manifest_has_the_figures_of_the_other_pictures(published):
    path, result = published
    found = json.loads(Path(f"{path}.json").read_text())
    figures = found["quantization"]
    assert found["options"]["precision"] == "int8"
    assert figures["calibrated"] + figures["checked"] + figures["unreadable"] == 41
    assert figures["unreadable"] == 1
    assert figures["min_cosine"] == 0.99
    assert 1 - 0.01 / within_limit.MARGIN <= figures["worst_cosine"] <= figures["median_cosine"] < 1
    assert figures["int8_layers"] + len(figures["float32_layers"]) == 12
    assert [check["purpose"] for check in found["parity"]["checks"]][:2] == ["exported", "fp32"]
    (line,) = (line for line in summary(result) if line.startswith("  int8"))
    assert "of 12 linear layers" in line


def test_weights_are_stored_as_int8_and_the_rest_is_float32(published):
    path, result = published
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    sizes = {tensor.name: len(tensor.raw_data) for tensor in graph.initializer}
    whole = [name for name, kind in types.items() if kind == onnx.TensorProto.INT8 and sizes[name] > 1000]
    assert len(whole) == result.manifest.quantization.int8_layers
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    kinds = [[made_by.get(name) for name in node.input] for node in graph.node if node.op_type == "MatMul"]
    assert kinds.count(["DequantizeLinear"] * 2) == len(whole)
    for node in graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "Conv"):
            assert "DequantizeLinear" not in [made_by.get(name) for name in node.input]


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_the_golden_sample_is_kept_by_each_backend(published, provider):
    if provider == "openvino":
        pytest.importorskip("openvino")
    assert verify(published[0], provider).passed


@pytest.mark.skipif(not has_bf16(), reason="needs a CPU with bf16 (AVX512-BF16 or AMX)")
def test_what_is_not_int8_may_run_in_bf16_within_the_same_limits(published):
    pytest.importorskip("openvino")
    exact, rounded = (verify(published[0], "openvino", compute=compute) for compute in (None, "bf16"))
    assert (exact.backend.rpartition(" (")[2], rounded.backend.rpartition(" (")[2]) == (
        "CPU, int8)",
        "CPU, int8, bf16)",
    )
    assert rounded.passed
    assert rounded.limits == exact.limits
    assert rounded.parity.max_abs != exact.parity.max_abs
    assert Way("openvino", "bf16") in ways(read_manifest(published[0]))


def test_an_int8_file_is_tuned_by_its_own_limit(published, tmp_path):
    path = Path(shutil.copytree(published[0].parent, tmp_path / "own")) / published[0].name
    own = read_manifest(path).parity.limits.min_cosine
    assert own < 0.999
    assert run_command(["bench", str(path), "--tune", "--runs", "1", "--batch", "1"]) == 0
    assert json.loads(Path(f"{path}.tuned.json").read_text())["min_cosine"] == own


def test_a_limit_that_int8_cannot_keep_is_refused_with_figures_and_nothing_is_written(pictures, tmp_path):
    spec = ExportSpec(tmp_path / "m.onnx", calibrate_images=pictures, min_cosine=0.9999999, **OPTIONS)
    with pytest.raises(ParityError, match=r"does not keep --min-cosine 0.9999999: .* cosine 0\.99\d+, the"):
        export(spec, Progress(quiet=True))
    assert list(tmp_path.iterdir()) == []


def planted(folder: Path) -> Path:
    """Weights in which one hidden unit of each MLP has massive numbers, which no norm can hand over.

    What the first block makes of that hardly counts: its LayerScale is small.
    """
    tensors = random_tensors(ARCH, 0)
    for block, factor in ((0, 4000.0), (1, 1000.0)):
        for name in ("weight", "bias"):
            tensors[f"blocks.{block}.mlp.fc1.{name}"][7] *= factor
        tensors[f"blocks.{block}.mlp.fc2.weight"][:, 7] /= factor
    tensors["blocks.0.ls2.gamma"] *= 1e-3
    path = folder / "planted.safetensors"
    save_file(tensors, path)
    return path


def test_an_engine_counts_the_layers_in_int8_kernels_and_the_onnx_file_beside_it_none(pictures, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    kept = tmp_path / "m.onnx"
    options = {**OPTIONS, "backend": "tensorrt-rtx", "keep_onnx": kept, "calibrate_limit": 32, "min_cosine": 0.99}
    result = export(ExportSpec(tmp_path / "m.engine", calibrate_images=pictures, **options), Progress(quiet=True))
    figures = result.manifest.quantization
    assert figures.engine_layers == figures.int8_layers == 12
    assert read_manifest(kept).quantization.engine_layers is None
    assert any("12 of 12 linear layers, 12 of them in int8 kernels" in line for line in summary(result))


def planted_in_int8(pictures: Path, folder: Path, weights: Path) -> tuple[Path, Quantization]:
    options = {**OPTIONS, "weights": str(weights), "calibrate_limit": 32, "min_cosine": 0.99}
    spec = ExportSpec(folder / "m.onnx", calibrate_images=pictures, **options)
    figures = export(spec, Progress(quiet=True)).manifest.quantization
    assert figures.worst_cosine >= 1 - 0.01 / within_limit.MARGIN
    return spec.path, figures


def test_massive_numbers_behind_no_norm_are_divided_and_every_layer_stays_int8(pictures, tmp_path):
    path, figures = planted_in_int8(pictures, tmp_path, planted(tmp_path))
    assert figures.float32_layers == ()
    divided = [node for node in onnx.load(path).graph.node if node.name.endswith("_divided")]
    assert {node.op_type for node in divided} == {"Mul"}
    assert len(divided) == 2


def test_the_layer_that_loses_most_goes_back_to_float32_and_the_manifest_names_it(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "WORTH", 0.0)  # so that massive numbers stay where they are
    weights = planted(tmp_path)
    path, figures = planted_in_int8(pictures, tmp_path, weights)
    (layer,) = figures.float32_layers
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(stored[layer], load_file(weights)["blocks.1.mlp.fc2.weight"].T)
    assert figures.int8_layers == 11
    assert verify(path, "cpu").passed


def test_too_few_pictures_are_counted(pictures, tmp_path):
    spec = ExportSpec(tmp_path / "m.onnx", calibrate_images=pictures, calibrate_limit=20, **OPTIONS)
    with pytest.raises(
        InputError, match="at least 32 pictures that can be read, half of them to check by; 20 could be"
    ):
        export(spec, Progress(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--precision", "int8"], "--precision int8 needs --calibrate-images"),
        (["--calibrate-images", "x"], "--calibrate-images is for --precision int8"),
        (["--min-cosine", "0.99"], "--min-cosine is for --precision int8"),
        (["--precision", "int8", "--calibrate-images", "x", "--min-cosine", "1"], "must be above 0 and below 1"),
        (["--precision", "int8", "--calibrate-images", "nowhere"], "nowhere"),
        (["--precision", "int8", "--calibrate-images", "x", "--outputs", "patch_tokens"], "add embedding to --outputs"),
    ],
)
def test_bad_use_is_refused_in_a_line(argv, says, tmp_path, capsys):
    assert main([*argv, "--weights", "random:0", "--size", "vits14", "--out", str(tmp_path / "m.onnx")]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 8, 11, 12])
def test_the_fewest_groups_stay_float32(needed):
    asked = []

    def attempt(left):
        asked.append(left)
        worst = 0.9995 if left >= needed else 0.9
        return type("Figures", (), {"worst_cosine": worst}), Path(str(left)), None

    left, figures, path, _ = within_limit._fewest(attempt, 12, 0.999)
    assert left == needed
    assert path == Path(str(needed))
    assert asked[-1] == needed  # its files are the ones that lie there
    assert figures.worst_cosine == 0.9995


def test_figures_of_equal_embeddings_are_perfect():
    exact = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    found = compare(exact, exact * 2)
    assert found.worst_cosine == pytest.approx(1)
    assert (found.neighbours, found.same_centroid, found.pictures) == (1.0, 1.0, 60)


def test_figures_of_other_embeddings_are_not():
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((60, 16)).astype(np.float32)
    found = compare(exact, exact + rng.standard_normal((60, 16)).astype(np.float32))
    assert found.worst_cosine < found.median_cosine < 0.9
    assert found.neighbours < 0.7
    assert found.same_centroid < 0.9


def test_figures_of_one_picture_many_times_are_finite():
    assert compare(np.ones((40, 8), np.float32), np.ones((40, 8), np.float32)).same_centroid == 1.0
