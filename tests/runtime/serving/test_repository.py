"""What `triton` writes, without a server."""

from __future__ import annotations

import json

import numpy as np
import pytest

from runtime.__main__ import main
from runtime.contract.manifest import read_manifest

pytest.importorskip("tritonclient.grpc", reason="needs the extra triton: pip install '.[triton]'")


def config_of(folder):
    from runtime.serving import model_config

    return model_config.parse((folder / "config.pbtxt").read_bytes())


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(*words):
    return main(["triton", *map(str, words)])


def refused(capsys, *words):
    assert write(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_configuration_says_what_the_manifest_says(tmp_path, make_model):
    model = make_model(tmp_path, dtype="uint8", outputs=("embedding", "artifact_mask"))
    out = tmp_path / "repository"
    assert write(model, "--out", out, "--max-batch", "16", "--queue-delay", "2.5", "--instances", "2") == 0
    config, images = config_of(out / "tiny"), config_of(out / "tiny_images")
    from tritonclient.grpc import model_config_pb2 as messages

    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 16)
    (source,) = config.input
    assert (source.name, source.data_type, list(source.dims)) == ("images", messages.TYPE_UINT8, [42, 42, 3])
    found = [(one.name, one.data_type, list(one.dims)) for one in config.output]
    assert found == [("embedding", messages.TYPE_FP32, [6]), ("artifact_mask", messages.TYPE_BOOL, [1, 9])]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert [(one.count, one.kind) for one in config.instance_group] == [(2, messages.ModelInstanceGroup.KIND_CPU)]
    assert (config.version_policy.latest.num_versions, images.version_policy.latest.num_versions) == (2, 1)
    (warmup,) = config.model_warmup
    with np.load(model.with_name("tiny.onnx.parity.npz")) as golden:
        sample = golden["input"][0].tobytes()
    assert (out / "tiny" / "warmup" / warmup.inputs["images"].input_data_file).read_bytes() == sample
    assert [(one.name, one.data_type) for one in images.input] == [("image", messages.TYPE_STRING)]
    assert [one.name for one in images.output] == ["embedding"]
    assert images.max_batch_size == 16


def test_what_runs_the_model_is_in_the_configuration(tmp_path, make_model):
    model = make_model(tmp_path)
    words = (model, "--out", tmp_path / "repository", "--instances", "2")
    assert write(*words) == 0
    assert list(config_of(tmp_path / "repository" / "tiny").parameters) == ["itae"]
    assert write(*words, "--provider", "openvino", "--compute", "bf16", "--threads", "3") == 0
    parameters = config_of(tmp_path / "repository" / "tiny").parameters
    found = {name: one.string_value for name, one in parameters.items()}
    assert found == {"itae": "tensor", "provider": "openvino", "compute": "bf16", "threads": "3"}


def test_the_copy_of_a_model_is_whole(tmp_path, make_model):
    model = make_model(tmp_path / "models")
    assert write(model, "--out", tmp_path / "repository") == 0
    copy = tmp_path / "repository" / "tiny" / "1" / "model.onnx"
    assert read_manifest(copy) == read_manifest(model)
    assert main(["verify", str(copy)]) == 0
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_same_again_changes_nothing(tmp_path, make_model, capsys):
    model = make_model(tmp_path / "models")
    out = tmp_path / "repository"
    assert write(model, "--out", out) == 0
    before = files(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert write(model, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)["models"]
    assert [(one["name"], one["version"], one["new"]) for one in said] == [
        ("tiny", 1, False),
        ("tiny_images", 1, False),
    ]
    assert files(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps  # a server would load it again


def test_another_model_is_a_new_version_beside_the_older_one(tmp_path, make_model):
    out = tmp_path / "repository"
    assert write(make_model(tmp_path / "one"), "--out", out) == 0
    before = files(out / "tiny" / "1")
    other = make_model(tmp_path / "two", "other.onnx", factor=2)
    assert write(other, "--out", out, "--name", "tiny", "--versions", "2") == 0
    assert files(out / "tiny" / "1") == before
    assert read_manifest(out / "tiny" / "2" / "model.onnx") == read_manifest(other)
    record = json.loads((out / "tiny_images" / "2" / "images.json").read_text())
    assert (record["model"], record["version"]) == ("tiny", 2)
    assert config_of(out / "tiny").version_policy.latest.num_versions == 3


def test_options_of_the_images_alone_make_no_new_version_of_the_model(tmp_path, make_model):
    model = make_model(tmp_path / "models")
    out = tmp_path / "repository"
    assert write(model, "--out", out) == 0
    assert write(model, "--out", out, "--max-pixels", "1000") == 0
    record = json.loads((out / "tiny_images" / "2" / "images.json").read_text())
    assert (record["version"], record["max_pixels"]) == (1, 1000)
    assert not (out / "tiny" / "2").exists()


def test_several_models_and_those_of_one_name(tmp_path, make_model, capsys):
    one, two = make_model(tmp_path / "a", "one.onnx"), make_model(tmp_path / "b", "two.onnx")
    assert write(one, two, "--out", tmp_path / "repository") == 0
    found = sorted(path.name for path in (tmp_path / "repository").iterdir())
    assert found == ["one", "one_images", "two", "two_images"]
    again = make_model(tmp_path / "b", "one.onnx")
    assert "two models are called one" in refused(capsys, one, again, "--out", tmp_path / "other")


@pytest.mark.parametrize(("builder", "backend"), [("onnx", "onnxruntime"), ("tensorrt", "tensorrt")])
def test_a_model_for_gpus(builder, backend, tmp_path, make_model):
    batch = (1, 4, 16) if builder == "tensorrt" else None
    model = make_model(tmp_path, "x.engine" if batch else "x.onnx", builder=builder, batch=batch)
    out = tmp_path / "repository"
    words = ["--gpus", "0,2"] if batch else ["--backend", "onnxruntime", "--gpus", "0,2"]
    assert write(model, "--out", out, *words) == 0
    config = config_of(out / "x")
    from tritonclient.grpc import model_config_pb2 as messages

    assert (config.backend, config.max_batch_size) == (backend, 16 if batch else 32)
    assert list(config.dynamic_batching.preferred_batch_size) == ([4, 16] if batch else [])
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (messages.ModelInstanceGroup.KIND_GPU, [0, 2])
    assert (out / "x" / "1" / config.default_model_filename).read_bytes() == model.read_bytes()
    assert not (out / "x" / "1" / "model.py").exists()
    assert config_of(out / "x_images").backend == "python"


def test_a_model_that_does_not_fit_what_is_there_changes_nothing(tmp_path, make_model, capsys):
    out = tmp_path / "repository"
    assert write(make_model(tmp_path / "one"), "--out", out) == 0
    before = files(out)
    other = make_model(tmp_path / "two", dtype="uint8")
    assert "another input `pixel_values`" in refused(capsys, other, "--out", out)
    good = make_model(tmp_path / "three", "a.onnx")
    refused(capsys, good, other, "--out", out)  # nor does the good one come, which is named first
    assert files(out) == before
    (out / "mine").mkdir()
    (out / "mine" / "config.pbtxt").write_text('name: "mine" backend: "python"')
    theirs = make_model(tmp_path / "four", "mine.onnx")
    assert "of another program" in refused(capsys, theirs, "--out", out)
    (out / "mine" / "config.pbtxt").write_text("{")
    assert "can't be read" in refused(capsys, theirs, "--out", out)


def test_a_write_that_fails_leaves_nothing(tmp_path, make_model, capsys, monkeypatch):
    from runtime.serving import repository

    model = make_model(tmp_path / "one")
    out = tmp_path / "repository"
    assert write(model, "--out", out) == 0
    before = files(out)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository.shutil, "copyfile", full)
    other = make_model(tmp_path / "two", factor=2)
    assert "No space left" in refused(capsys, other, "--out", out)
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.onnx.parity.npz", "tiny.onnx.json"])
def test_an_altered_model_is_refused(name, tmp_path, make_model, capsys):
    model = make_model(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    line = refused(capsys, model, "--out", tmp_path / "repository")
    assert name in line
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-batch", "0"], "--max-batch 0"),
        (["--instances", "65"], "--instances 65"),
        (["--versions", "0"], "--versions 0"),
        (["--queue-delay", "nan"], "--queue-delay nan"),
        (["--gpus", "0"], "--backend python runs on the CPU"),
        (["--gpus", "0,0", "--backend", "onnxruntime"], "different numbers"),
        (["--backend", "tensorrt"], "is an ONNX model"),
        (["--name", "../up"], "can't be a model's name"),
        (["--name", "a_images"], "can't be a model's name"),
        (["--max-pixels", "0"], "--max-pixels 0"),
        (["--threads", "0"], "--threads 0"),
        (["--compute", "bf16"], "by the provider openvino alone"),
        (["--provider", "openvino", "--backend", "onnxruntime"], "--provider is for --backend python"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(words, message, tmp_path, make_model, capsys):
    model = make_model(tmp_path)
    assert message in refused(capsys, model, "--out", tmp_path / "repository", *words)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("builder", "batch", "words", "message"),
    [
        ("tensorrt-rtx", (1, 4, 8), [], "TensorRT-RTX"),
        ("tensorrt", (2, 4, 8), [], "2 images or more"),
        ("tensorrt", (1, 4, 8), ["--max-batch", "9"], "takes 8 at most"),
        ("tensorrt", (1, 4, 8), ["--backend", "python"], "is an engine"),
    ],
)
def test_engines_that_triton_can_not_run(builder, batch, words, message, tmp_path, make_model, capsys):
    model = make_model(tmp_path, "x.engine", builder=builder, batch=batch)
    assert message in refused(capsys, model, "--out", tmp_path / "repository", *words)


def test_centroids_of_another_model_are_refused(tmp_path, make_model, capsys, pictures):
    model, other = make_model(tmp_path / "one"), make_model(tmp_path / "two", factor=2)
    store, clusters = tmp_path / "store", tmp_path / "clusters"
    assert main(["embed", str(other), str(pictures), "--out", str(store)]) == 0
    assert main(["cluster", str(store), "--k", "2", "--out", str(clusters), "--quiet"]) == 0
    capsys.readouterr()
    assert "by another model" in refused(capsys, model, "--out", tmp_path / "r", "--centroids", clusters)
    np.save(tmp_path / "wide.npy", np.ones((2, 7), np.float32))
    assert "width 7" in refused(capsys, model, "--out", tmp_path / "r", "--centroids", tmp_path / "wide.npy")
    assert write(other, "--out", tmp_path / "r", "--centroids", clusters) == 0
    assert [one.name for one in config_of(tmp_path / "r" / "tiny_images").output] == [
        "embedding",
        "cluster",
        "distance",
    ]


def test_an_altered_record_is_refused(tmp_path, make_model):
    from runtime.contract.errors import ManifestError
    from runtime.serving.images_record import ImagesRecord

    assert write(make_model(tmp_path / "models"), "--out", tmp_path / "r") == 0
    folder = tmp_path / "r" / "tiny_images" / "1"
    assert ImagesRecord.read(folder).model == "tiny"
    text = (folder / "images.json").read_bytes()
    for altered in (text.replace(b'"version": 1', b'"version": 2'), text[:-9], b"{}", b"[" * 100_000):
        (folder / "images.json").write_bytes(altered)
        with pytest.raises(ManifestError, match=r"images\.json"):
            ImagesRecord.read(folder)
