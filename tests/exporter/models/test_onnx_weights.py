"""`--weights X.onnx`: a DINOv2 whose checkpoint is lost, out of what an exporter made of it."""

import dataclasses
import importlib.util
import warnings

import numpy as np
import onnx
import pytest
import torch
from foreign_models import results
from onnx import numpy_helper
from torchvision_stand_in import torchvision_stand_in

from exporter import pipeline
from exporter.models import weights
from exporter.models.architecture import Architecture
from exporter.options import ExportSpec
from exporter.steps import Progress
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
    deeper = Architecture("tiny3", width=12, heads=3, depth=3)
    with pytest.raises(WeightsError, match=r"layer\.2\.[\w.]+ is missing"):
        weights.load(deeper, str(tmp_path / "x.onnx"))
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "x.onnx").read_bytes()[:3000])
    with pytest.raises(WeightsError, match="can't read the ONNX file"):
        weights.load(PLAIN, str(tmp_path / "cut.onnx"))


def test_weights_that_the_file_does_not_compute_with_are_refused_with_the_figure(tmp_path):
    export(PLAIN, tmp_path / "x.onnx", "17")
    heads = Architecture("tiny_heads", width=12, heads=2, depth=2)  # which shows in no tensor
    with pytest.raises(WeightsError, match=r"gives other tokens than the file itself, off by 0\.\d+"):
        weights.load(heads, str(tmp_path / "x.onnx"))


def test_a_folded_layer_scale_is_said(tmp_path):
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_our_own_export_with_itae_gives_its_weights_for_its_image_size(precision, tmp_path):
    path = tmp_path / "ours.onnx"
    spec = ExportSpec(path, size=PLAIN, weights="random:7", image_size=56, precision=precision)
    pipeline.export(spec, Progress(quiet=True))
    found = weights.load(PLAIN, str(path))
    assert any("of 4x4 patches, resized already: it is exact at --image-size 56" in one for one in found.origin.notes)
    assert any("in half precision" in one for one in found.origin.notes) == (precision == "fp16")
    again = tmp_path / "again.onnx"
    pipeline.export(dataclasses.replace(spec, out=again, weights=str(path)), Progress(quiet=True))
    pictures = np.random.default_rng(0).standard_normal((2, 3, 56, 56)).astype(np.float32)
    limit = 1e-5 if precision == "fp32" else 2e-2
    np.testing.assert_allclose(results(again, pictures)[0], results(path, pictures)[0], rtol=0, atol=limit)


def test_packed_projections_of_timm_come_back(tmp_path):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install --no-deps timm")
    with torchvision_stand_in():
        from timm.models.vision_transformer import VisionTransformer
    model = VisionTransformer(
        img_size=56, patch_size=14, embed_dim=12, depth=2, num_heads=3, num_classes=0, init_values=0.3
    ).eval()
    seed = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn(one.shape, generator=seed) * 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 3, 56, 56),), tmp_path / "x.onnx", dynamo=False, opset_version=17,
            input_names=["image"], output_names=["out"], dynamic_axes={"image": {0: "batch"}, "out": {0: "batch"}},
        )  # fmt: skip
    found = weights.load(PLAIN, str(tmp_path / "x.onnx")).model
    rows = model.blocks[1].attn.qkv.weight.detach().numpy()
    np.testing.assert_array_equal(found.encoder.layer[1].attention.k_proj.weight.numpy(), rows[12:24])
