"""`--weights X.onnx`: a DINOv2 whose checkpoint is lost, out of what an exporter made of it."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from exporter.models import weights
from exporter.models.architecture import Architecture
from runtime.contract.errors import WeightsError

PLAIN = Architecture("tiny", width=12, heads=3, depth=2)
SWIGLU = Architecture("tiny_swiglu", width=12, heads=3, depth=1, swiglu=True)
REGISTERS = Architecture("tiny_reg", width=12, heads=3, depth=2, registers=4)


class _Tokens(torch.nn.Module):
    def __init__(self, model, head=False):
        super().__init__()
        self.model = model
        self.decoder = torch.nn.Conv2d(12, 2, 1) if head else None

    def forward(self, pixel_values):
        tokens = self.model(pixel_values).last_hidden_state
        if self.decoder is None:
            return tokens
        return self.decoder(tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))


def export(arch, path, how, *, head=False, side=56):
    """A seeded model of transformers as ONNX; gives the model."""
    model = weights.load(arch, "random:7").model
    model.set_attn_implementation("eager")
    images = torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "dynamo":
            torch.onnx.export(
                _Tokens(model, head), (images,), path, dynamo=True, opset_version=20, external_data=False,
                verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
        else:
            axes = {"pixel_values": {0: "batch"}, "out": {0: "batch"}}
            torch.onnx.export(
                _Tokens(model, head), (images,), path, dynamo=False, opset_version=int(how), dynamic_axes=axes,
                input_names=["pixel_values"], output_names=["out"],
            )  # fmt: skip
    return model


def check(arch, path, model):
    """The found parameters are the model's, but for the mask token, which no run reads."""
    found = weights.load(arch, str(path))
    want = dict(model.named_parameters())
    for name, one in found.model.named_parameters():
        if not name.endswith("mask_token"):
            np.testing.assert_array_equal(one.numpy(), want[name].numpy(), err_msg=name)
    return found


@pytest.mark.parametrize(
    ("arch", "how", "head"),
    [(PLAIN, "14", False), (PLAIN, "17", True), (SWIGLU, "17", False), (REGISTERS, "dynamo", False)],
    ids=["opset 14", "decoder", "SwiGLU", "registers"],
)
def test_every_weight_comes_back_out_of_an_export(arch, how, head, tmp_path):
    model = export(arch, tmp_path / "x.onnx", how, head=head)
    check(arch, tmp_path / "x.onnx", model)


def _changed(path, change):
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def test_what_is_no_dinov2_or_another_size_is_refused_with_what_was_missing(tmp_path):
    export(PLAIN, tmp_path / "x.onnx", "17")
    with pytest.raises(WeightsError, match="is not a checkpoint of tiny_swiglu"):
        weights.load(SWIGLU, str(tmp_path / "x.onnx"))
    bert = Architecture("tiny3", width=12, heads=3, depth=3)
    with pytest.raises(WeightsError, match=r"layer\.2\.[\w.]+ is missing"):
        weights.load(bert, str(tmp_path / "x.onnx"))
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "x.onnx").read_bytes()[:3000])
    with pytest.raises(WeightsError, match="can't read the ONNX file"):
        weights.load(PLAIN, str(tmp_path / "cut.onnx"))


def test_weights_that_the_file_does_not_compute_with_are_refused_with_the_figure(tmp_path):
    export(PLAIN, tmp_path / "x.onnx", "17")
    heads = Architecture("tiny_heads", width=12, heads=2, depth=2)  # which shows in no tensor
    with pytest.raises(WeightsError, match=r"gives other tokens than the file itself, off by 0\.\d+"):
        weights.load(heads, str(tmp_path / "x.onnx"))


def test_half_precision_and_a_folded_layer_scale_are_said(tmp_path):
    path = tmp_path / "x.onnx"
    export(PLAIN, path, "17")

    def fold(model):
        scales = {one.name: one for one in model.graph.initializer if one.name.endswith(".lambda1")}
        for one in scales.values():
            one.CopyFrom(numpy_helper.from_array(np.ones(12, np.float32), one.name.replace("lambda1", "one")))
        for node in model.graph.node:
            node.input[:] = [name.replace("lambda1", "one") for name in node.input]

    _changed(path, fold)
    found = weights.load(PLAIN, str(path))
    assert any("no LayerScale" in note for note in found.origin.notes)
    assert found.model.encoder.layer[0].layer_scale1.lambda1.tolist() == [1.0] * 12
