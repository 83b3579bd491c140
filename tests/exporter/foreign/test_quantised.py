"""Quantised files of others: taken where integers round what the linears read, refused by name otherwise."""

import json

import onnx
import pytest
from foreign_models import images, put_in
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from runtime.__main__ import main as run_main


class Noise(CalibrationDataReader):
    """Two batches of noise."""

    def __init__(self):
        self.left = [images(2), images(3)]

    def get_next(self):
        return {"pixel_values": self.left.pop()} if self.left else None


def static(source, out, nodes=None, form=QuantFormat.QDQ):
    quantize_static(
        source, out, Noise(), quant_format=form, per_channel=True, nodes_to_quantize=nodes,
        activation_type=QuantType.QInt8 if form == QuantFormat.QDQ else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )  # fmt: skip


def linears(path):
    graph = onnx.load(path).graph
    weights = {one.name for one in graph.initializer}
    return [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and weights & set(node.input[:2])]


def test_a_file_whose_linears_are_quantised_is_taken_with_the_tokens_that_enter_each_block(exported, tmp_path, capsys):
    source, theirs, out = exported("vit", "eager", "ts17"), tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    static(source, theirs, linears(source))
    assert put_in(theirs, out, "--threshold", "ratio:1.2", "--source", "residual", "--layers", "all") == 0
    checks = json.loads((tmp_path / "x.onnx.json").read_text())["parity"]["checks"]
    assert any(0 < one["flagged"] < one["patches"] and one["effect"] > 1e-3 for one in checks)
    assert run_main(["verify", str(out)]) == 0
    capsys.readouterr()
    assert put_in(theirs, tmp_path / "half.onnx", "--precision", "fp16") == 2
    assert "the file is quantised: leave the option out" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["dynamic", "all", "operators"])
def test_quantised_attention_is_refused_by_name(form, exported, tmp_path, capsys):
    source, theirs = exported("vit", "eager", "ts17"), tmp_path / "theirs.onnx"
    if form == "dynamic":
        quantize_dynamic(source, theirs)
    else:
        static(source, theirs, form=QuantFormat.QDQ if form == "all" else QuantFormat.QOperator)
    assert put_in(theirs, tmp_path / "x.onnx") == 2
    assert "the file is quantised (" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()
