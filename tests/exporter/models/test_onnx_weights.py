"""`--weights X.onnx`: a DINOv2 whose checkpoint is lost, out of what an exporter made of it."""

import collections
import dataclasses
import importlib.util
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from foreign_models import results
from onnx import helper, numpy_helper
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


def check(arch, path, model, *, but=("mask_token",)):
    """The found parameters are the model's, but for the mask token, which no run reads."""
    found = weights.load(arch, str(path))
    want = dict(model.named_parameters())
    for name, one in found.model.named_parameters():
        if not name.endswith(but):
            np.testing.assert_array_equal(one.numpy(), want[name].numpy(), err_msg=name)
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export by TorchScript, opset 17, and its model."""
    path = tmp_path_factory.mktemp("exported") / "x.onnx"
    return path, export(PLAIN, path, "17")


@pytest.mark.parametrize(
    ("arch", "how", "head"),
    [(PLAIN, "14", False), (PLAIN, "17", True), (SWIGLU, "17", False), (REGISTERS, "dynamo", False)],
    ids=["opset 14", "decoder", "SwiGLU", "registers"],
)
def test_every_weight_comes_back_out_of_an_export(arch, how, head, tmp_path):
    model = export(arch, tmp_path / "x.onnx", how, head=head)
    check(arch, tmp_path / "x.onnx", model)


def _changed(source, path, change):
    model = onnx.load(source)
    change(model)
    onnx.save(model, path)


def _nodes(model, nodes):
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rename(model):
    """Give every tensor a name that says nothing."""
    kept = {one.name for one in (*model.graph.input, *model.graph.output)}
    names = {name: name for name in kept}
    for one in model.graph.initializer:
        one.name = names.setdefault(one.name, f"onnx::MatMul_{len(names)}")
    for node in model.graph.node:
        node.name = ""
        for names_of in (node.input, node.output):
            names_of[:] = [name and names.setdefault(name, f"val_{len(names)}") for name in names_of]


def _transpose(model):
    """Store the weights of products as PyTorch has them, (out, in), and turn them in the graph."""
    stored, nodes = {one.name: one for one in model.graph.initializer}, []
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            array = numpy_helper.to_array(stored[node.input[1]])
            name = f"{node.output[0]}/turned"
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array.T), f"{name}/stored"))
            nodes.append(helper.make_node("Transpose", [f"{name}/stored"], [name], perm=[1, 0]))
            node.input[1] = name
        nodes.append(node)
    _nodes(model, nodes)


def _merge(model):
    """Make one product and a Split of query, key and value."""
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    user = {name: node for node in model.graph.node for name in node.input}
    products = collections.defaultdict(list)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored and stored[node.input[1]].shape == (12, 12):
            products[node.input[0]].append(node)
    merged, gone = {}, set()
    for source, three in products.items():
        if len(three) == 3:
            sums = [user[node.output[0]] for node in three]
            biases = [next(stored[name] for name in node.input if name in stored) for node in sums]
            whole = np.concatenate([stored[node.input[1]] for node in three], axis=1)
            arrays = {"W": whole, "B": np.concatenate(biases), "S": np.array([12] * 3)}
            for key, array in arrays.items():
                model.graph.initializer.append(numpy_helper.from_array(array, f"{source}/{key}"))
            merged[three[0].output[0]] = [
                helper.make_node("MatMul", [source, f"{source}/W"], [f"{source}/product"]),
                helper.make_node("Add", [f"{source}/product", f"{source}/B"], [f"{source}/sum"]),
                helper.make_node("Split", [f"{source}/sum", f"{source}/S"], [node.output[0] for node in sums], axis=-1),
            ]
            gone |= {node.output[0] for node in (*three, *sums)}
    assert len(merged) == 2
    _nodes(
        model,
        [
            new
            for node in model.graph.node
            for new in (*merged.get(node.output[0], ()), *(() if node.output[0] in gone else (node,)))
        ],
    )


def _fold_scales(model):
    """Multiply LayerScale into the layers before it."""
    stored = {one.name: one for one in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    ends = {}
    for node in [one for one in model.graph.node if one.op_type == "Mul"]:
        scale = next((name for name in node.input if name.endswith(".lambda1")), None)
        if scale is None:
            continue
        total = next(name for name in node.input if name != scale)
        product = next(maker[name] for name in maker[total].input if name in maker)
        bias = next(name for name in maker[total].input if name in stored)
        for name in (product.input[1], bias):
            array = numpy_helper.to_array(stored[name]) * numpy_helper.to_array(stored[scale])
            stored[name].CopyFrom(numpy_helper.from_array(array, name))
        ends[node.output[0]] = total
    assert len(ends) == 4
    for node in model.graph.node:
        node.input[:] = [ends.get(name, name) for name in node.input]
    _nodes(model, [node for node in model.graph.node if node.output[0] not in ends])


@pytest.mark.parametrize("change", [_rename, _transpose, _merge])
def test_names_and_the_form_of_weights_do_not_count(change, exported, tmp_path):
    path, model = exported
    _changed(path, tmp_path / "y.onnx", change)
    check(PLAIN, tmp_path / "y.onnx", model)


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
def test_a_file_that_onnx_runtime_optimised_gives_its_weights(level, exported, tmp_path):
    path, model = exported
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(tmp_path / "y.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    check(PLAIN, tmp_path / "y.onnx", model)


def test_fused_norms_give_their_weights(exported, tmp_path):
    """SkipLayerNormalization and BiasGelu, as ONNX Runtime's optimiser for transformers writes them."""
    from onnxruntime.transformers import optimizer

    path, model = exported
    fused = optimizer.optimize_model(str(path), model_type="vit", num_heads=3, hidden_size=12, opt_level=0)
    fused.save_model_to_file(str(tmp_path / "y.onnx"))
    found = {node.op_type for node in onnx.load(tmp_path / "y.onnx").graph.node}
    assert {"SkipLayerNormalization", "BiasGelu"} <= found
    check(PLAIN, tmp_path / "y.onnx", model)


def _fuse_attention(model, op):
    """Make one operator of ONNX Runtime's of each attention."""
    _merge(model)
    stored = {one.name: one for one in model.graph.initializer}
    ends = [
        node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in stored and list(stored[node.input[1]].dims) == [12, 12]
    ]
    splits = [node for node in model.graph.node if node.op_type == "Split"]
    biases = [next(name for name in stored if name == f"{node.input[1].removesuffix('S')}B") for node in splits]
    fused = {}
    for split, bias, end in zip(splits, biases, ends, strict=True):
        source = bias.removesuffix("/B")
        if op == "Attention":
            inputs = [source, f"{source}/W", bias]
        else:
            product = f"{source}/product"
            parts = [f"{product}/{part}" for part in "qkv"]
            fused[split.output[0]] = helper.make_node("Split", [product, f"{source}/S"], parts, axis=-1)
            inputs = [*parts, bias]
        fused[end] = helper.make_node(op, inputs, [end], domain="com.microsoft", num_heads=3)
    nodes = [fused.get(node.output[0], node) for node in model.graph.node]
    needed = {one.name for one in model.graph.output}
    kept = []
    for node in reversed(nodes):
        if needed & {*node.output}:
            kept.append(node)
            needed |= {*node.input}
    _nodes(model, reversed(kept))
    assert [node.op_type for node in kept].count(op) == 2
    assert not [node for node in kept if node.op_type == "Softmax"]
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@pytest.mark.parametrize("op", ["Attention", "MultiHeadAttention"])
def test_a_fused_attention_gives_its_weights(op, exported, tmp_path):
    path, model = exported
    _changed(path, tmp_path / "y.onnx", lambda changed: _fuse_attention(changed, op))
    check(PLAIN, tmp_path / "y.onnx", model)


def test_biases_behind_the_parts_of_one_product_are_found(exported, tmp_path):
    """As onnxsim joins the products of query, key and value."""

    def join(model):
        _merge(model)
        stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        nodes = []
        for node in model.graph.node:
            if node.op_type == "Add" and node.input[1].endswith("/B"):
                continue
            if node.op_type == "Split":
                source = node.input[1].removesuffix("/S")
                parts = [f"{name}/part" for name in node.output]
                nodes.append(helper.make_node("Split", [f"{source}/product", node.input[1]], parts, axis=-1))
                for part, name, bias in zip(parts, node.output, np.split(stored[f"{source}/B"], 3), strict=True):
                    model.graph.initializer.append(numpy_helper.from_array(bias, f"{name}/bias"))
                    nodes.append(helper.make_node("Add", [part, f"{name}/bias"], [name]))
                continue
            nodes.append(node)
        _nodes(model, nodes)

    path, model = exported
    _changed(path, tmp_path / "y.onnx", join)
    check(PLAIN, tmp_path / "y.onnx", model)


def test_weights_beside_the_file_are_read(exported, tmp_path):
    path, model = exported
    onnx.save(onnx.load(path), tmp_path / "y.onnx", save_as_external_data=True, location="y.data", size_threshold=0)
    check(PLAIN, tmp_path / "y.onnx", model)


def test_what_is_no_dinov2_or_another_size_is_refused_with_what_was_missing(exported, tmp_path):
    path = str(exported[0])
    with pytest.raises(WeightsError, match=r"is not a tiny_swiglu: it has 2 layers \(expected 1\)"):
        weights.load(SWIGLU, path)
    with pytest.raises(WeightsError, match="is not a checkpoint of tiny_swiglu"):
        weights.load(dataclasses.replace(SWIGLU, depth=2), path)
    with pytest.raises(WeightsError, match=r"is not a tiny_reg: it has 1 tokens before the patches, expected 5"):
        weights.load(REGISTERS, path)
    (tmp_path / "cut.onnx").write_bytes(exported[0].read_bytes()[:3000])
    with pytest.raises(WeightsError, match="can't read the ONNX file"):
        weights.load(PLAIN, str(tmp_path / "cut.onnx"))


def _without_final_norm(model):
    norm = next(node for node in reversed(model.graph.node) if node.op_type == "LayerNormalization")
    output = onnx.helper.make_tensor_value_info(norm.input[0], onnx.TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(output)
    model.graph.node.remove(norm)


def _quantized(model):
    model.graph.node.append(helper.make_node("DequantizeLinear", ["a", "b"], ["c"]))


def _laid_out(model):
    next(node for node in model.graph.node if node.op_type == "Conv").domain = "com.microsoft.nchwc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_final_norm, "has no final norm behind its 2 layers"),
        (_quantized, r"is quantized \(DequantizeLinear\)"),
        (_laid_out, r"is laid out for one kind of CPU \(Conv\)"),
    ],
)
def test_a_file_whose_weights_are_lost_is_refused(change, message, exported, tmp_path):
    _changed(exported[0], tmp_path / "y.onnx", change)
    with pytest.raises(WeightsError, match=message):
        weights.load(PLAIN, str(tmp_path / "y.onnx"))


def test_weights_that_the_file_does_not_compute_with_are_refused_with_the_figure(exported):
    heads = Architecture("tiny_heads", width=12, heads=2, depth=2)  # which shows in no tensor
    with pytest.raises(WeightsError, match=r"gives other tokens than the file itself, off by 0\.\d+"):
        weights.load(heads, str(exported[0]))


def test_a_folded_layer_scale_is_said(exported, tmp_path):
    path = tmp_path / "y.onnx"
    _changed(exported[0], path, _fold_scales)
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
    other = dataclasses.replace(spec, out=tmp_path / "other.onnx", weights=str(path), image_size=70)
    with pytest.raises(WeightsError, match=r"resized to 4x4 patches already.*give --image-size 56"):
        pipeline.export(other, Progress(quiet=True))
    assert not other.path.exists()
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
