"""`inspect` on real exports of small models, on files that are no model, and on models that ITAE can't go into."""

import json
import os
import sys

import foreign_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.__main__ import main

HEADS, HEAD_DIM = 4, 8
FORMS = [
    # family, attention, how; prefix; where the scale is; the mask
    ("dinov2", "eager", "ts14", 1, "scale on the product", "none"),
    ("dinov2", "sdpa", "ts17", 1, "scale on Q and K", "none"),
    ("registers", "sdpa", "dynamo20", 5, "a guard against NaN", "hides nothing"),
    ("registers", "sdpa", "dynamo23", 5, "the operator Attention", "hides nothing"),
    ("dinov3", "eager", "ts17", 5, "scale on the product", "none"),
    ("vit", "eager", "dynamo20", 1, "a mask before the softmax", "hides nothing"),
    ("deit", "sdpa", "ts14", 2, "scale on Q and K", "none"),
    ("beit", "eager", "ts11", 1, "a mask before the softmax", "bias"),
    ("clip", "sdpa", "dynamo18", 1, "scale on Q and K", "none"),
]


def inspected(path, capsys, *options):
    code = main(["inspect", str(path), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("family", "attention", "how", "prefix", "form", "mask"), FORMS, ids=["-".join(one[:3]) for one in FORMS]
)
def test_a_real_export_is_understood(family, attention, how, prefix, form, mask, exported, capsys):
    code, found = inspected(exported(family, attention, how), capsys)
    assert (code, found["refused"]) == (0, None)
    assert (found["layers"], found["grid"], found["prefix_tokens"]) == (3, [4, 4], prefix)
    for layer, site in enumerate(found["sites"]):
        assert (site["kind"], site["layer"], site["heads"], site["head_dim"]) == ("self", layer, HEADS, HEAD_DIM)
        assert site["tokens"] == 16 + prefix
        assert site["scale"] == pytest.approx(HEAD_DIM**-0.5)
        assert site["mask"] == mask
        assert form in site["form"]
        assert site["residual"]
    assert found["opset"] == int("".join(filter(str.isdigit, how)))
    assert [one["name"] for one in found["outputs"]] == ["last_hidden_state", "pooler_output"]


def test_a_pooling_head_by_cross_attention_is_no_layer(exported, capsys):
    code, found = inspected(exported("siglip", "sdpa", "ts17"), capsys)
    assert code == 0
    assert [site["kind"] for site in found["sites"]] == ["self", "self", "self", "cross"]
    assert (found["layers"], found["prefix_tokens"]) == (3, 0)


def test_people_get_a_table(exported, capsys):
    assert main(["inspect", str(exported("dinov2", "sdpa", "ts17"))]) == 0
    text = capsys.readouterr().out
    assert "layer 0-2" in text
    assert "4 heads of 8, 17 tokens, scale 0.3536" in text
    assert "ITAE can be put into it" in text


def test_windowed_attention_is_refused(exported, capsys):
    code, found = inspected(exported("swin", "eager", "ts17"), capsys)
    assert code == 1
    assert found["refused"].startswith("windowed attention")


def model(nodes, inputs, outputs, weights=(), opset=17, **more):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, **more)


def attention(prefix=(), scores=(), kind=TensorProto.FLOAT):
    """One attention over tokens (B, 1, N, d), its input called `x`."""
    rng = np.random.default_rng(0)
    weights = [(name, rng.standard_normal((8, 8)).astype(np.float32)) for name in ("wq", "wk", "wv")]
    nodes = [
        *prefix,
        *(helper.make_node("MatMul", ["x", f"w{one}"], [one], name=f"project_{one}") for one in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["logits"], name="scores"),
        *scores,
        helper.make_node("Softmax", ["masked" if scores else "logits"], ["p"], axis=-1, name="soft"),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="mix"),
    ]
    return nodes, weights


def test_a_causal_mask_is_refused(tmp_path, capsys):
    mask = np.triu(np.full((16, 16), -np.inf, np.float32), 1)
    to_tokens = [
        helper.make_node("Conv", ["pixels", "kernel"], ["map"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["map", "flat"], ["by_channel"]),
        helper.make_node("Transpose", ["by_channel"], ["x"], perm=[0, 1, 3, 2]),
    ]
    nodes, weights = attention(to_tokens, [helper.make_node("Add", ["logits", "mask"], ["masked"])])
    weights += [
        ("mask", mask),
        ("kernel", np.ones((8, 3, 4, 4), np.float32)),
        ("flat", np.array([0, 1, 8, 16], np.int64)),
    ]
    path = tmp_path / "causal.onnx"
    shape = ["batch", 3, 16, 16]
    onnx.save(model(nodes, [("pixels", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, None)], weights), path)
    code, found = inspected(path, capsys)
    assert code == 1
    assert found["refused"].startswith("a causal mask hides later tokens")
    assert "'soft'" in found["refused"]


def test_a_model_of_text_is_refused(tmp_path, capsys):
    begin = [
        helper.make_node("Gather", ["table", "input_ids"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["x"]),
    ]
    nodes, weights = attention(begin)
    weights += [("table", np.ones((5, 8), np.float32)), ("one", np.array([1], np.int64))]
    path = tmp_path / "text.onnx"
    ids = [("input_ids", TensorProto.INT64, ["batch", "length"])]
    onnx.save(model(nodes, ids, [("y", TensorProto.FLOAT, None)], weights), path)
    code, found = inspected(path, capsys)
    assert code == 1
    assert "it takes input_ids int64; is it a model of text?" in found["refused"]


def test_a_convolutional_network_is_refused(tmp_path, capsys):
    path = tmp_path / "cnn.onnx"
    nodes = [helper.make_node("Conv", ["pixels", "kernel"], ["y"], name="conv")]
    kernel = [("kernel", np.ones((8, 3, 4, 4), np.float32))]
    shape = ["batch", 3, 16, 16]
    onnx.save(model(nodes, [("pixels", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, None)], kernel), path)
    code, found = inspected(path, capsys)
    assert code == 1
    assert "0 Softmax and 1 Conv (is it a convolutional network?)" in found["refused"]


def test_a_near_miss_is_named(exported, tmp_path, capsys):
    path = tmp_path / "other.onnx"
    changed = onnx.load(exported("dinov2", "eager", "ts14"))
    for node in changed.graph.node:
        if node.op_type == "Softmax":
            node.op_type = "LogSoftmax"
    onnx.save(changed, path)
    code, found = inspected(path, capsys)
    assert code == 1
    assert "found none" in found["refused"]
    tanh = tmp_path / "tanh.onnx"
    changed = onnx.load(exported("dinov2", "eager", "ts14"))
    for node in [one for one in changed.graph.node if one.op_type == "Softmax"]:
        changed.graph.node.insert(
            list(changed.graph.node).index(node),
            helper.make_node("Tanh", [node.input[0]], [f"{node.name}/t"], f"{node.name}/tanh"),
        )
        node.input[0] = f"{node.name}/t"
    onnx.save(changed, tanh)
    code, found = inspected(tanh, capsys)
    assert code == 1
    assert "the nearest miss, after 2 matching nodes" in found["refused"]
    assert "found Tanh" in found["refused"]


@pytest.mark.parametrize("form", [("eager", "ts17-half"), ("sdpa", "dynamo23-half")], ids="-".join)
def test_a_build_says_how_many_attentions_are_one_kernel(form, exported, capfd):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'itae[rtx]'")
    path = exported("wide", *form)
    files = sorted(path.parent.iterdir())
    code, found = inspected(path, capfd, "--build")
    built = found["build"]
    assert (code, built["refused"]) == (0, None)
    assert (built["fusion"]["sites"], built["fusion"]["fused"]) == (3, 3)
    assert built["builder"].startswith("TensorRT-RTX 1.")
    assert built["bytes"] > 0
    assert sorted(path.parent.iterdir()) == files


def test_a_build_takes_nodes_of_no_name_and_an_open_size_and_keeps_to_the_file(tmp_path, capfd):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'itae[rtx]'")
    path = tmp_path / "open.onnx"
    foreign_models.export_open_size(path)
    changed = onnx.load(path)
    for node in changed.graph.node:
        node.ClearField("name")
    onnx.save(changed, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert main(["inspect", str(path), "--build", "--image-size", "48x64"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert ": taken, " in text
    assert "attention fused: 0 of 3; not layers 0-2: TensorRT fuses attention over all queries in fp16" in text
    assert sorted(one.name for one in tmp_path.iterdir()) == ["open.onnx", "w.bin"]


@pytest.mark.parametrize(
    ("form", "said"),
    [(("registers", "sdpa", "dynamo23"), "Attention operation was not supported"), (None, "input factor has shape")],
    ids=["operator", "inputs"],
)
def test_a_file_that_the_builder_does_not_take_is_no_error(form, said, exported, tmp_path, capfd):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'itae[rtx]'")
    path = tmp_path / "factor.onnx"
    if form is None:
        foreign_models.export_with_factor(path)
    code, found = inspected(path if form is None else exported(*form), capfd, "--build")
    assert code == 0  # ITAE can be put into it
    assert said in found["build"]["refused"]
    assert (found["build"]["fusion"], found["build"]["bytes"]) == (None, 0)


def test_without_the_builder_a_build_is_refused_in_one_line(exported, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    path = exported("dinov2", "eager", "ts14")
    code = main(["inspect", str(path), "--build"])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert "inspect --build needs tensorrt-rtx" in said.err
    assert "pip install 'itae[rtx]'" in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert inspected(path, capsys)[1]["build"] is None


def refused_at_the_door(path, capsys):
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert len(said.err.strip().splitlines()) == 1
    return said.err


def test_damaged_files_are_refused_in_one_line(exported, tmp_path, capsys):
    whole = exported("dinov2", "eager", "ts14").read_bytes()
    path = tmp_path / "x.onnx"
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "x.onnx" in refused_at_the_door(path, capsys)
    path.write_bytes(b"PK\x03\x04" + b"\x00" * 500)
    assert "x.onnx" in refused_at_the_door(path, capsys)
    assert "folder" in refused_at_the_door(tmp_path, capsys)
    assert "can't read" in refused_at_the_door(tmp_path / "none.onnx", capsys)


def test_an_unknown_domain_is_refused(exported, tmp_path, capsys):
    changed = onnx.load(exported("dinov2", "eager", "ts14"))
    changed.graph.node[5].domain = "my.own"
    onnx.save(changed, tmp_path / "x.onnx")
    assert "domain 'my.own'" in refused_at_the_door(tmp_path / "x.onnx", capsys)


@pytest.mark.parametrize(
    ("location", "said"),
    [("../w.bin", "outside"), ("/etc/passwd", "outside"), ("none.bin", "can't be read"), ("short.bin", "has 3 bytes")],
)
def test_external_data_elsewhere_or_missing_is_refused(location, said, exported, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(b"0" * 10_000)
    (folder / "short.bin").write_bytes(b"123")
    changed = onnx.load(exported("dinov2", "eager", "ts14"))
    weight = max(changed.graph.initializer, key=lambda one: len(one.raw_data))
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    onnx.save(changed, folder / "x.onnx")
    assert said in refused_at_the_door(folder / "x.onnx", capsys)


def test_external_data_beside_the_model_is_read(exported, tmp_path, capsys):
    path = tmp_path / "x.onnx"
    onnx.save(
        onnx.load(exported("dinov2", "eager", "ts14")),
        path,
        save_as_external_data=True,
        location="x.bin",
        size_threshold=0,
    )
    code, found = inspected(path, capsys)
    assert (code, found["external_data"], found["layers"]) == (0, ["x.bin"], 3)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"location": "pipe"}, "no regular file"),  # which would be waited for
        ({"location": "w.bin", "offset": "-8", "length": "8"}, "is damaged"),
        ({"location": "w\0.bin"}, "outside the model's folder"),
    ],
)
def test_external_data_that_is_no_place_in_a_file_is_refused(entries, said, exported, tmp_path, capsys):
    model = onnx.load(exported("dinov2", "sdpa", "ts14"))
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    (tmp_path / "w.bin").write_bytes(bytes(8))
    os.mkfifo(tmp_path / "pipe")
    onnx.save(model, tmp_path / "x.onnx")
    assert main(["inspect", str(tmp_path / "x.onnx")]) == 2
    assert said in capsys.readouterr().err


def test_a_pipe_is_no_model(tmp_path, capsys):
    os.mkfifo(tmp_path / "x.onnx")
    assert main(["inspect", str(tmp_path / "x.onnx")]) == 2
    assert "no regular file" in capsys.readouterr().err
