"""Weights from every source that `--weights` names, and every way in which a checkpoint can be wrong."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from huggingface_hub import errors as hub_errors

from exporter.models import backbone, checkpoint, hub, naming, weights
from exporter.models.architecture import ARCHITECTURES, Architecture
from runtime.contract.errors import UsageError, WeightsError, one_line

SHAPES = {
    "plain": Architecture("tiny", width=12, heads=3, depth=2),
    "registers": Architecture("tiny_reg", width=12, heads=3, depth=2, registers=4),
    "swiglu": Architecture("tiny_swiglu", width=12, heads=3, depth=1, swiglu=True),
    "swiglu and registers": Architecture("tiny_both", width=12, heads=3, depth=1, registers=4, swiglu=True),
}
ARCH = SHAPES["swiglu and registers"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@functools.cache
def drawn(arch: Architecture) -> dict[str, torch.Tensor]:
    """A checkpoint in Meta's naming; not to be changed."""
    return weights.random_tensors(arch, 7)


def meta(arch: Architecture = ARCH) -> dict[str, torch.Tensor]:
    return dict(drawn(arch))


@functools.cache
def expected_sha256(arch: Architecture) -> str:
    return weights.load(arch, "random:7").origin.sha256


@functools.cache
def hugging_face_model(arch: Architecture):
    return weights.load(arch, "random:7").model


def save(tensors, path: Path) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return str(path)


def refused(arch: Architecture, given: object) -> str:
    """The message of the refusal, which must fit on a line of a terminal, and name the file."""
    with pytest.raises(WeightsError) as caught:
        weights.load(arch, str(given))
    message = one_line(caught.value)
    assert len(message) < 600
    return message


@pytest.mark.parametrize("arch", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.safetensors"])
def test_metas_file_round_trips(tmp_path, arch, name):
    loaded = weights.load(arch, save(meta(arch), tmp_path / name))
    assert (loaded.origin.sha256, loaded.origin.revision) == (expected_sha256(arch), None)
    assert loaded.origin.source == str(tmp_path / name)
    held = dict(loaded.model.named_parameters())
    for entry_name, entry in naming.meta_entries(arch).items():
        together = torch.cat([held.pop(target) for target in entry.targets])
        assert torch.equal(together, drawn(arch)[entry_name]), entry_name
    assert held == {}  # every parameter came from the checkpoint
    assert not loaded.model.training


def test_swiglus_w12_is_split_into_gate_and_up_and_qkv_into_three():
    C, M = ARCH.width, ARCH.mlp_width
    held = dict(weights.load(ARCH, "random:7").model.named_parameters())
    w12, qkv = drawn(ARCH)["blocks.0.mlp.w12.weight"], drawn(ARCH)["blocks.0.attn.qkv.weight"]
    assert w12.shape == (2 * M, C)
    assert torch.equal(held["encoder.layer.0.mlp.gate_proj.weight"], w12[:M])
    assert torch.equal(held["encoder.layer.0.mlp.up_proj.weight"], w12[M:])
    for index, part in enumerate("qkv"):
        assert torch.equal(held[f"encoder.layer.0.attention.{part}_proj.weight"], qkv[index * C : (index + 1) * C])


@pytest.mark.parametrize("arch", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", ["folder", "single file", "shards"])
def test_what_transformers_saves_gives_the_same_parameters_and_hash(tmp_path, arch, form):
    shard = {"max_shard_size": "10KB"} if form == "shards" else {}
    hugging_face_model(arch).save_pretrained(tmp_path, **shard)
    if form == "shards":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    given = tmp_path / "model.safetensors" if form == "single file" else tmp_path
    loaded = weights.load(arch, str(given))
    assert loaded.origin.sha256 == expected_sha256(arch)
    for name, tensor in hugging_face_model(arch).named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), tensor), name


@pytest.mark.parametrize("arch", SHAPES.values(), ids=SHAPES)
def test_transformers_itself_reads_its_folder_as_we_do(tmp_path, arch):
    hugging_face_model(arch).save_pretrained(tmp_path)
    theirs = type(hugging_face_model(arch)).from_pretrained(tmp_path).state_dict()
    ours = weights.load(arch, str(tmp_path)).model.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name]), name


def test_the_folder_names_tensors_as_the_published_checkpoints_do(tmp_path):
    hugging_face_model(ARCH).save_pretrained(tmp_path)
    names = set(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert names == set(naming.hugging_face_entries(ARCH))
    assert "encoder.layer.0.attention.attention.query.weight" in names
    assert "encoder.layer.0.mlp.weights_in.weight" in names


def rename(tensors, old, new):
    tensors[new] = tensors.pop(old)


BROKEN = {
    "missing": (lambda t: t.pop("norm.bias"), ["norm.bias is missing"]),
    "extra": (lambda t: t.update({"blocks.0.b": torch.ones(2, 2)}), ["blocks.0.b is not part of it"]),
    "renamed": (lambda t: rename(t, "norm.bias", "norm.b"), ["norm.bias is missing", "norm.b is not part of it"]),
    "misshapen": (lambda t: t.update({"norm.bias": torch.ones(13)}), ["norm.bias is 13, expected 12"]),
    "transposed": (
        lambda t: t.update({"blocks.0.mlp.w3.weight": t["blocks.0.mlp.w3.weight"].T.contiguous()}),
        ["blocks.0.mlp.w3.weight is 32×12, expected 12×32"],
    ),
    "scalar": (lambda t: t.update({"norm.bias": torch.tensor(1.0)}), ["norm.bias is a scalar, expected 12"]),
    "NaN": (lambda t: t["norm.bias"].fill_(1)[3].fill_(float("nan")), ["norm.bias holds NaN or infinity"]),
    "infinity": (lambda t: t["pos_embed"][0, 1369, 11].fill_(-float("inf")), ["pos_embed holds NaN or infinity"]),
    "integers": (lambda t: t.update({"norm.bias": torch.ones(12, dtype=torch.int64)}), ["norm.bias is torch.int64"]),
    "booleans": (lambda t: t.update({"norm.bias": torch.ones(12, dtype=torch.bool)}), ["norm.bias is torch.bool"]),
    "complex": (lambda t: t.update({"norm.bias": torch.ones(12, dtype=torch.complex64)}), ["norm.bias is torch.comp"]),
    "not one tensor of it": (lambda t: t.clear() or t.update({"x": torch.ones(1)}), ["holds no DINOv2", "it has x"]),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_tensor_that_is_wrong_is_named(tmp_path, name, spoil, words):
    tensors = {key: value.clone() for key, value in meta().items()}
    spoil(tensors)
    message = refused(ARCH, save(tensors, tmp_path / name))
    assert name in message
    for word in words:
        assert word in message


def test_of_many_wrong_tensors_three_are_named_and_the_others_counted(tmp_path):
    tensors = {name: tensor for name, tensor in meta().items() if "blocks" not in name}
    missing = len(meta()) - len(tensors)
    message = refused(ARCH, save(tensors, tmp_path / "a.pth"))
    assert message.count("is missing") == backbone.MAX_NAMED
    assert f"(and {missing - backbone.MAX_NAMED} more)" in message


@pytest.mark.parametrize(
    "other",
    [SHAPES["plain"], SHAPES["swiglu"], Architecture("wider", width=24, heads=3, depth=1, registers=4, swiglu=True),
     Architecture("deeper", width=12, heads=3, depth=2, registers=4, swiglu=True)],
    ids=lambda arch: arch.name,
)  # fmt: skip
@pytest.mark.parametrize("form", ["Meta", "Hugging Face"])
def test_weights_of_another_size_are_refused(tmp_path, other, form):
    if form == "Meta":
        given = save(meta(other), tmp_path / "a.pth")
    else:
        hugging_face_model(other).save_pretrained(tmp_path)
        given = str(tmp_path / "model.safetensors")
    message = refused(ARCH, given)
    assert f"is not a checkpoint of {ARCH.name}" in message
    assert "--size" not in message  # none has this form


def test_a_file_that_is_not_there_is_refused_with_the_other_forms(tmp_path):
    message = refused(ARCH, tmp_path / "missing.pth")
    assert "no such file or folder" in message
    assert "hf:REPO" in message


@pytest.mark.parametrize("name", ["a.txt", "a", "a.npz"])
def test_another_kind_of_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"something")
    assert "expected .pth, .ckpt or .bin of PyTorch, .safetensors" in refused(ARCH, tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert f"{name} is empty" in refused(ARCH, tmp_path / name)


LEGACY = "legacy.pth"
"""Not a zip file but a row of pickles, as torch wrote before 1.6."""


@functools.cache
def file_bytes(name: str) -> bytes:
    # Without the position embedding, nine tenths of the file: else few of the damages would hit the structure.
    tensors = {key: value for key, value in meta().items() if key != "pos_embed"}
    if name.endswith(".safetensors"):
        return safetensors.torch.save(tensors)
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=name != LEGACY)
    return buffer.getvalue()


FILES = ("a.pth", LEGACY, "a.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_a_file_truncated_anywhere_is_refused(tmp_path, name):
    whole = file_bytes(name)
    path = tmp_path / name
    rng = random.Random(1)
    lengths = [1, 2, 7, 8, 9, 64, len(whole) // 2, len(whole) - 1, *(rng.randrange(1, len(whole)) for _ in range(60))]
    for length in lengths:
        path.write_bytes(whole[:length])
        assert name in refused(ARCH, path), length


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_a_flipped_bit_is_read_or_refused_and_raises_nothing_else(tmp_path, name):
    """Where it hits the structure; a bit flipped in a number is a number, which is why the manifest has their hash."""
    whole = file_bytes(name)
    path = tmp_path / name
    rng = random.Random(2)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(whole)
        near_an_end = rng.choice([rng.randrange(4096), len(whole) - 1 - rng.randrange(4096)])
        damaged[rng.choice([near_an_end, rng.randrange(len(whole))])] ^= 1 << rng.randrange(8)
        path.unlink(missing_ok=True)  # an older safetensors file may still be mapped into memory
        path.write_bytes(damaged)
        try:
            backbone.translate(checkpoint.read_checkpoint(path), ARCH, str(path))
        except WeightsError:
            refusals += 1
    assert refusals == 300  # `pos_embed` is missing from every one that can be read
    path.write_bytes(whole)
    assert "pos_embed is missing" in refused(ARCH, path)


def test_a_bit_flipped_in_a_number_changes_the_hash(tmp_path):
    path = tmp_path / "a.safetensors"
    save(meta(), path)
    damaged = bytearray(path.read_bytes())
    damaged[-4] ^= 1
    path.unlink()
    path.write_bytes(damaged)
    assert weights.load(ARCH, str(path)).origin.sha256 != expected_sha256(ARCH)


class RunsCode:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


CALLS = {
    "posix.mkdir": b"cposix\nmkdir\n(X\x01\x00\x00\x00xtR",
    "builtins.eval": b"c__builtin__\neval\n(X\x01\x00\x00\x00xtR",
    "subprocess.Popen": b"csubprocess\nPopen\n(X\x01\x00\x00\x00xtR",
    "torch.hub.load": b"ctorch.hub\nload\n(X\x01\x00\x00\x00xtR",
}


@pytest.mark.parametrize(("name", "call"), CALLS.items(), ids=CALLS)
def test_the_entry_that_calls_is_named(tmp_path, name, call):
    torch.save({"model": meta(), "hooks": {"first": "HERE"}}, tmp_path / "plain.pth")
    text = b"X\x04\x00\x00\x00HERE"
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "a.pth", "w") as altered:
        for one in plain.infolist():
            data = plain.read(one)
            assert text in data or not one.filename.endswith("data.pkl")
            altered.writestr(one.filename, data.replace(text, call))
    message = refused(ARCH, tmp_path / "a.pth")
    assert f"it could run code: its entry hooks.first needs {name}. Convert it safely" in message


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("name", ["a.pth", "a.bin"])
def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(tmp_path, form, name):
    mark = tmp_path / "it-ran"
    path = tmp_path / name
    evil = {**meta(), "extra": RunsCode(mark)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(RunsCode(mark)))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(ARCH, path)
    assert not mark.exists()
    assert name in message
    if form != "bare pickle":
        assert "could run code" in message
        torch.load(path, weights_only=False)  # the same file, loaded without care
        assert mark.is_dir()
    else:
        pickle.loads(path.read_bytes())  # the file would have run it
        assert mark.is_dir()


@pytest.mark.parametrize(
    "given",
    [
        [torch.ones(1)],
        torch.ones(3),
        {"epoch": 3},
        {"model": {"epoch": 3}, "loss": [1.0]},
        {},
        None,
        "text",
    ],
    ids=["list", "tensor", "no tensor", "nested", "empty", "nothing", "text"],
)
def test_what_is_not_tensors_by_name_is_refused(tmp_path, given):
    torch.save(given, tmp_path / "a.pth")
    assert "is not a state dict" in refused(ARCH, tmp_path / "a.pth")


@pytest.mark.parametrize("given", [{"cls_token": [1.0]}, {"model": {"cls_token": torch.ones(1)}, "epoch": 3}])
def test_a_state_dict_of_nearly_nothing_is_refused_by_what_it_misses(tmp_path, given):
    assert "pos_embed is missing" in refused(ARCH, save(given, tmp_path / "a.pth"))


@pytest.mark.parametrize("kind", ["sparse", "meta", "nested"])
def test_a_tensor_without_plain_values_is_refused(tmp_path, kind):
    tensor = {
        "sparse": lambda: torch.ones(12).to_sparse(),
        "meta": lambda: torch.ones(12, device="meta"),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(6), torch.ones(6)], layout=torch.jagged),
    }[kind]
    given = {**meta(), "norm.bias": tensor()}
    torch.save(given, tmp_path / "a.pth")
    assert "a.pth" in refused(ARCH, tmp_path / "a.pth")


def test_parameters_views_and_other_orders_load_as_plain_tensors_do(tmp_path):
    shuffled = list(meta().items())
    random.Random(0).shuffle(shuffled)
    odd = OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in shuffled)
    w = meta()["blocks.0.attn.qkv.weight"]
    odd["blocks.0.attn.qkv.weight"] = w.T.contiguous().T  # the same values, laid out otherwise
    assert not odd["blocks.0.attn.qkv.weight"].is_contiguous()
    assert weights.load(ARCH, save(odd, tmp_path / "a.pth")).origin.sha256 == expected_sha256(ARCH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_other_floating_point_types_are_read_as_float32(tmp_path, dtype, name):
    narrow = {key: tensor.to(dtype) for key, tensor in meta().items()}
    loaded = weights.load(ARCH, save(narrow, tmp_path / name))
    assert {tensor.dtype for tensor in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.get_parameter("layernorm.bias"), narrow["norm.bias"].float())
    as_float32 = save({key: tensor.float() for key, tensor in narrow.items()}, tmp_path / f"wide-{name}")
    assert loaded.origin.sha256 == weights.load(ARCH, as_float32).origin.sha256
    assert (loaded.origin.sha256 == expected_sha256(ARCH)) == (dtype == torch.float64)


def test_a_float64_too_large_for_float32_is_refused(tmp_path):
    tensors = {**meta(), "norm.bias": torch.full((12,), 1e39, dtype=torch.float64)}
    assert "norm.bias holds NaN or infinity" in refused(ARCH, save(tensors, tmp_path / "a.pth"))


@pytest.fixture
def weights_folder(tmp_path):
    """A Hugging Face folder of ARCH, whole."""
    hugging_face_model(ARCH).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def weights_shards(tmp_path):
    """The same in shards."""
    hugging_face_model(ARCH).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    return tmp_path / "shards"


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_attention_heads", 4), ("hidden_size", 24), ("num_hidden_layers", 2), ("use_swiglu_ffn", False),
     ("layer_norm_eps", 1e-5), ("hidden_act", "relu"), ("patch_size", 16)],
)  # fmt: skip
def test_a_config_of_another_model_is_refused(weights_folder, key, value):
    edit_json(weights_folder / "config.json", **{key: value})
    message = refused(ARCH, weights_folder)
    assert f"says {key} {value}, {ARCH.name} has" in message


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"text"', "null", "{}", '{"hidden_size": 12}', "[" * 100_000, "\ud800"],
    ids=["empty", "cut", "list", "text", "null", "no fields", "one field", "deep", "not UTF-8"],
)
def test_a_config_that_is_none_is_refused(weights_folder, text):
    (weights_folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "config.json is not the config of a DINOv2" in refused(ARCH, weights_folder)


def test_a_folder_without_a_config_is_read_all_the_same(weights_folder):
    (weights_folder / "config.json").unlink()
    assert weights.load(ARCH, str(weights_folder)).origin.sha256 == expected_sha256(ARCH)


def test_a_folder_without_weights_is_refused(tmp_path):
    assert "holds no model.safetensors" in refused(ARCH, tmp_path)


def test_a_missing_shard_is_named(weights_shards):
    shard = sorted(weights_shards.glob("model-*.safetensors"))[1]
    shard.unlink()
    message = refused(ARCH, weights_shards)
    assert shard.name in message
    assert "No such file" in message


def test_a_shard_that_is_not_in_the_index_is_missed(weights_shards):
    index = weights_shards / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    dropped = sorted(set(weight_map.values()))[0]
    edit_json(index, weight_map={name: shard for name, shard in weight_map.items() if shard != dropped})
    assert "is missing" in refused(ARCH, weights_shards)


@pytest.mark.parametrize(
    "shard", ["../model/model.safetensors", "/etc/passwd", "..", ".", "", "config.json", 5, None, ["a"]]
)
def test_an_index_that_names_something_outside_the_folder_is_refused(weights_shards, weights_folder, shard):
    assert (weights_shards / "../model/model.safetensors").is_file()
    edit_json(weights_shards / "model.safetensors.index.json", weight_map={"cls_token": shard})
    assert "model.safetensors.index.json" in refused(ARCH, weights_shards)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": null}', "[" * 100_000],
                         ids=["empty", "cut", "list", "no map", "a number", "null", "deep"])  # fmt: skip
def test_an_index_that_is_none_is_refused(weights_shards, text):
    (weights_shards / "model.safetensors.index.json").write_text(text)
    assert "is not an index of shards" in refused(ARCH, weights_shards)


def test_an_index_larger_than_any_is_refused_unread(weights_shards, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_INDEX_BYTES", 100)
    assert "is larger than 100 bytes" in refused(ARCH, weights_shards)


def test_a_damaged_shard_is_named(weights_shards):
    shard = sorted(weights_shards.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    assert f"{shard.name} is not a readable safetensors file" in refused(ARCH, weights_shards)


@pytest.fixture
def weights_hub(tmp_path, weights_folder, monkeypatch):
    """A hub whose cache holds ARCH as someone/model; gives the list of what was asked for."""
    snapshot = tmp_path / "hub" / "models--someone--model" / "snapshots" / COMMIT
    shutil.copytree(weights_folder, snapshot)
    asked = []

    def download(repository, filename, revision=None):
        asked.append((repository, filename, revision))
        return str(snapshot / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize(("tail", "revision"), [("", None), ("@main", "main"), (f"@{COMMIT}", COMMIT)])
def test_the_hubs_commit_is_kept_and_both_files_are_of_it(weights_hub, tail, revision):
    loaded = weights.load(ARCH, f"hf:someone/model{tail}")
    assert (loaded.origin.revision, loaded.origin.sha256) == (COMMIT, expected_sha256(ARCH))
    assert loaded.origin.source == f"hf:someone/model{tail}"
    assert weights_hub == [
        ("someone/model", "config.json", revision),
        ("someone/model", "model.safetensors", COMMIT),  # not `main`, which may have moved meanwhile
    ]


@pytest.fixture
def weights_cache(tmp_path, weights_folder, monkeypatch):
    """A hub's cache that holds ARCH as someone/model, without a network; gives its folder of the model."""

    def no_network(*_args, **_kwargs):
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setattr(hub, "hf_hub_download", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--someone--model"
    shutil.copytree(weights_folder, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


REFS = {
    "whole": lambda refs: None,
    "a line break": lambda refs: (refs / "main").write_text(f"{COMMIT}\n"),
    "Windows' line break": lambda refs: (refs / "main").write_bytes(f"{COMMIT}\r\n".encode()),
    "no main": lambda refs: (refs / "main").unlink(),
    "no refs": lambda refs: shutil.rmtree(refs),
}


@pytest.mark.parametrize("spoil", REFS.values(), ids=REFS)
@pytest.mark.parametrize("form", ["hf:someone/model", "hf:someone/model@main", "folder", "linked folder"])
def test_a_cached_model_needs_no_network(weights_cache, tmp_path, spoil, form):
    spoil(weights_cache / "refs")
    given = str(weights_cache) if form == "folder" else form
    if form == "linked folder":
        (tmp_path / "link").symlink_to(weights_cache)
        given = str(tmp_path / "link")
    loaded = weights.load(ARCH, given)
    assert loaded.origin.sha256 == expected_sha256(ARCH)
    assert loaded.origin.revision == (COMMIT if form.startswith("hf:") else None)


def test_a_cached_commit_and_a_cached_tag_need_no_network(weights_cache):
    (weights_cache / "refs" / "pr").mkdir()
    (weights_cache / "refs" / "pr" / "1").write_text(COMMIT)
    for revision in (COMMIT, "pr/1"):
        assert weights.load(ARCH, f"hf:someone/model@{revision}").origin.revision == COMMIT


@pytest.mark.parametrize("revision", ["@v2", "@../../../x", "@/etc"])
def test_a_revision_that_is_not_cached_is_asked_for(weights_cache, revision):
    assert "socksio" in refused(ARCH, f"hf:someone/model{revision}")


def test_weights_that_are_not_cached_beside_their_config_are_asked_for(weights_cache):
    (weights_cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    message = refused(ARCH, "hf:someone/model")
    assert "socksio" in message


def test_cached_weights_without_their_config_are_used(weights_cache):
    (weights_cache / "snapshots" / COMMIT / "config.json").unlink()
    assert weights.load(ARCH, "hf:someone/model").origin.sha256 == expected_sha256(ARCH)
    assert weights.load(ARCH, str(weights_cache / "snapshots")).origin.sha256 == expected_sha256(ARCH)


def test_cached_weights_of_another_model_are_refused_by_their_config(weights_cache):
    edit_json(weights_cache / "snapshots" / COMMIT / "config.json", num_attention_heads=4)
    assert "says num_attention_heads 4" in refused(ARCH, "hf:someone/model")


def test_a_link_of_the_cache_to_a_file_that_is_gone_counts_as_not_cached(weights_cache):
    held = weights_cache / "snapshots" / COMMIT / "model.safetensors"
    held.unlink()
    held.symlink_to(weights_cache / "blobs" / "gone")
    assert "socksio" in refused(ARCH, "hf:someone/model")


def test_of_several_snapshots_without_a_main_none_is_guessed(weights_cache):
    (weights_cache / "refs" / "main").unlink()
    shutil.copytree(weights_cache / "snapshots" / COMMIT, weights_cache / "snapshots" / ("f" * 40))
    assert "socksio" in refused(ARCH, "hf:someone/model")
    assert "holds several snapshots" in refused(ARCH, weights_cache)


def test_a_cached_folder_without_a_snapshot_is_refused(weights_cache):
    shutil.rmtree(weights_cache / "snapshots")
    (weights_cache / "snapshots").mkdir()
    assert "holds no snapshot" in refused(ARCH, weights_cache)


def test_a_repository_with_pytorchs_file_alone_is_downloaded(weights_hub, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--someone--model" / "snapshots" / COMMIT
    torch.save(safetensors.torch.load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    there = hub.hf_hub_download

    def download(repository, filename, revision=None):
        path = there(repository, filename, revision)
        if not Path(path).exists():
            raise hub_errors.RemoteEntryNotFoundError("x", response=response(404))
        return path

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert weights.load(ARCH, "hf:someone/model").origin.sha256 == expected_sha256(ARCH)
    assert weights_hub[-1] == ("someone/model", "pytorch_model.bin", COMMIT)


@pytest.mark.parametrize(
    ("size", "name", "fits"),
    [("vits14_reg", "vit_small_patch14_reg4_dinov2", True),
     ("vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m", True),
     ("vits14", "vit_small_patch14_reg4_dinov2", False), ("vitb14", "vit_base_patch16_224", False)],
)  # fmt: skip
def test_a_config_of_timm_names_its_architecture(tmp_path, size, name, fits):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 0}))
    if fits:
        checkpoint.check_config(tmp_path / "config.json", ARCHITECTURES[size])
        return
    with pytest.raises(WeightsError, match=f"says architecture {name}, {size} is vit_"):
        checkpoint.check_config(tmp_path / "config.json", ARCHITECTURES[size])


def test_auto_is_the_official_repository_of_the_size(weights_hub):
    official = Architecture("own", width=12, heads=3, depth=1, registers=4, swiglu=True, hub="facebook/dinov2-own")
    loaded = weights.load(official, "auto")
    assert loaded.origin.source == "hf:facebook/dinov2-own"
    assert {repository for repository, _, _ in weights_hub} == {"facebook/dinov2-own"}


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_every_size_has_an_official_repository(size):
    hub = ARCHITECTURES[size].hub
    word = {"s": "small", "b": "base", "l": "large", "g": "giant"}[size[3]]
    assert hub == f"facebook/dinov2-{'with-registers-' if size.endswith('_reg') else ''}{word}"


def test_a_config_of_another_model_on_the_hub_is_refused_before_its_weights_are_fetched(weights_hub):
    other = Architecture("other", width=12, heads=4, depth=1, registers=4, swiglu=True)
    with pytest.raises(WeightsError, match="num_attention_heads 3, other has 4"):
        weights.load(other, "hf:someone/model")
    assert [filename for _, filename, _ in weights_hub] == ["config.json"]


def response(status: int):
    return hub_errors.Response(status, request=SimpleNamespace())


HUB_FAILURES = {
    "not in the cache": (hub_errors.LocalEntryNotFoundError("x"), hub.CANT_REACH),
    "offline mode": (hub_errors.OfflineModeIsEnabled("x"), hub.CANT_REACH),
    "the HTTP library's own error": (hub_errors.HTTPError("the proxy is gone"), hub.CANT_REACH),
    "an error of the downloader": (RuntimeError("xet: connection reset"), hub.CANT_REACH),
    "no such repository": (
        hub_errors.RepositoryNotFoundError("x", response=response(404)),
        "the Hugging Face hub has no repository someone/model, or it is private",
    ),
    "gated": (hub_errors.GatedRepoError("x", response=response(403)), "or it is private"),
    "no such revision": (
        hub_errors.RevisionNotFoundError("x", response=response(404)),
        "the Hugging Face hub has no revision v9 of someone/model",
    ),
    "no such file": (
        hub_errors.RemoteEntryNotFoundError("x", response=response(404)),
        "someone/model@v9 on the Hugging Face hub has no file config.json",
    ),
    "server error": (hub_errors.HfHubHTTPError("503 try later", response=response(503)), "503 try later"),
    "disk full": (OSError(28, "No space left on device"), "No space left on device"),
}


@pytest.mark.parametrize(("error", "words"), HUB_FAILURES.values(), ids=HUB_FAILURES)
def test_a_failure_of_the_hub_is_told_in_one_line(monkeypatch, error, words):
    def download(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", download)
    message = refused(ARCH, "hf:someone/model@v9")
    assert words in message
    assert "someone/model" in message


def test_an_interrupted_download_is_an_interrupt(monkeypatch):
    def download(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(KeyboardInterrupt):
        weights.load(ARCH, "hf:someone/model")


@pytest.mark.parametrize("reference", ["hf:", "hf:a/b/c", "hf:some one/model", "hf:-a/b", "hf:@main"])
def test_what_is_no_name_of_a_repository_is_bad_use(reference):
    with pytest.raises(UsageError, match=f"--weights {reference}: not the name of a repository"):
        weights.load(ARCH, reference)


def test_a_hub_that_cannot_be_reached_is_told_by_the_real_library(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "--size", "vits14", "--out", str(tmp_path / "a.onnx")],
        env={
            **os.environ,
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"exporter: {hub.CANT_REACH} and facebook/dinov2-small is not in its cache")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize("arch", SHAPES.values(), ids=SHAPES)
def test_random_weights_leave_no_tensor_at_zeros_or_ones(arch):
    for name, tensor in drawn(arch).items():
        values = tensor.flatten()
        assert values.unique().numel() >= min(values.numel(), 12) * 0.9, name
        assert not torch.isin(values, torch.tensor([0.0, 1.0])).any(), name
        assert torch.isfinite(values).all(), name
    assert drawn(arch).keys() == naming.meta_entries(arch).keys()


def test_random_weights_are_those_of_their_seed():
    assert weights.load(ARCH, "random").origin.source == "random:0"
    once, again, other = (weights.load(ARCH, f"random:{seed}").origin.sha256 for seed in (3, 3, 4))
    assert once == again != other
    assert weights.load(ARCH, "random").origin.sha256 == weights.load(ARCH, "random:0").origin.sha256
    for name, tensor in weights.random_tensors(ARCH, 3).items():
        assert not torch.equal(tensor, weights.random_tensors(ARCH, 4)[name]), name


def test_random_weights_are_the_same_in_another_process_and_version():
    """A figure of this seed, so that a model that was made with it can be made again."""
    sample = weights.random_tensors(ARCH, 0)["norm.bias"][:3]
    np.testing.assert_allclose(sample, RANDOM_0_NORM_BIAS, rtol=1e-6)


RANDOM_0_NORM_BIAS = (0.017227391, -0.061775278, 0.093888275)


@pytest.mark.parametrize("given", ["random:", "random:x", "random:-1", "random:1.5", "random: 1", "random:1e3",
                                   "random:²", "random:" + "9" * 19])  # fmt: skip
def test_a_seed_that_is_none_is_bad_use(given):
    with pytest.raises(UsageError, match="the seed must be a whole number, as in random:0"):
        weights.load(ARCH, given)


def test_a_size_of_your_own_has_no_official_weights():
    with pytest.raises(UsageError, match="tiny_both has no official weights"):
        weights.load(ARCH, "auto")


def test_the_hash_tells_names_shapes_and_values_apart():
    a = {"x": torch.tensor([[1.0, 2.0]]), "y": torch.tensor([3.0])}
    assert weights.hash_parameters(a) == weights.hash_parameters(dict(reversed(a.items())))
    others = [
        {**a, "x": torch.tensor([[1.0], [2.0]])},
        {**a, "x": torch.tensor([[1.0, 2.5]])},
        {"x": a["x"], "z": a["y"]},
        {"x": a["x"]},
    ]
    assert len({weights.hash_parameters(one) for one in (a, *others)}) == 5


def test_the_libraries_are_told_to_be_quiet(monkeypatch):
    before = transformers.utils.logging.get_verbosity()
    try:
        weights.quiet_libraries()
        assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.ERROR
    finally:
        transformers.utils.logging.set_verbosity(before)
