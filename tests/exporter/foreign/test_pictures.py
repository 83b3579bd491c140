"""What a graph takes beside or in place of (B, 3, H, W) in float32, and which of its attentions are layers then."""

import json
import warnings

import numpy as np
import onnx
import pytest
import torch
import transformers
from foreign_models import SIZES, model_of, put_in, session

from exporter.__main__ import main
from runtime.__main__ import main as run_main
from runtime.contract.manifest import read_manifest

ITAE = ("--source", "key", "--threshold", "ratio:1.1", "--layers", "all")


def export(path, model, inputs, names, outputs):
    axes = {name: {0: "batch"} for name in (*names, *outputs)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), inputs, path, dynamo=False, opset_version=17, input_names=list(names),
            output_names=list(outputs), dynamic_axes=axes,
        )  # fmt: skip


def inspected(path, capsys):
    capsys.readouterr()
    code = main(["inspect", str(path), "--json"])
    return code, json.loads(capsys.readouterr().out)


class TwoTowers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        vision = {**SIZES, "hidden_size": 32, "intermediate_size": 64}
        text = {
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
            "vocab_size": 99, "max_position_embeddings": 16,
        }  # fmt: skip
        torch.manual_seed(0)
        self.model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))

    def forward(self, input_ids, pixel_values):
        found = self.model(input_ids=input_ids, pixel_values=pixel_values)
        return found.text_embeds, found.image_embeds


def test_a_text_encoder_beside_the_pictures_is_left_as_it_is(tmp_path, capsys):
    """16 tokens of text and 16 patches, as many heads, no causal mask: only what depends on the picture is a layer."""
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    words, pictures = torch.randint(0, 98, (2, 16)), torch.randn(2, 3, 64, 64)
    export(source, TwoTowers(), (words, pictures), ("input_ids", "pixel_values"), ("text", "image"))
    code, record = inspected(source, capsys)
    assert (code, record["layers"], record["prefix_tokens"]) == (0, 3, 0)
    assert sum(row["layer"] is None for row in record["sites"]) == 5  # the text's and the pooling head's
    assert put_in(source, out, *ITAE) == 0
    feeds = {"input_ids": words.numpy(), "pixel_values": pictures.numpy()}
    (text, image), (same, other) = (session(path).run(None, feeds) for path in (source, out))
    np.testing.assert_array_equal(text, same)
    assert np.abs(image - other).max() > 1e-3


class Odd(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.model, self.kind = model_of("vit", "eager"), kind

    def forward(self, picture):
        if "bytes" in self.kind:
            picture = picture.float() / 128 - 1
        if "last" in self.kind:
            picture = picture.permute(0, 3, 1, 2)
        return self.model(picture.expand(-1, 3, -1, -1)).pooler_output


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("bytes", (2, 3, 64, 64)), ("last", (2, 64, 64, 3)), ("bytes, last", (2, 64, 64, 3)), ("grey", (2, 1, 64, 64))],
)
def test_pictures_of_other_forms_are_operated_on_and_embed_is_told(kind, shape, tmp_path, capsys):
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8) if "bytes" in kind else torch.randn(shape)
    export(source, Odd(kind), (pictures,), ("picture",), ("pooled",))
    code, record = inspected(source, capsys)
    assert (code, record["layers"], record["prefix_tokens"], record["grid"]) == (0, 3, 1, [4, 4])
    assert main(["--onnx", str(source), "--out", str(out), *ITAE]) == 0
    assert "this model takes" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx.json").exists()
    before, after = (onnx.load(path).graph.input[0] for path in (source, out))
    assert before == after


def test_a_mask_of_four_dimensions_is_no_picture(tmp_path, capsys):
    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

        def forward(self, tokens, mask):
            return self.attention(tokens) * mask[:, 0, :, :1]

    source = tmp_path / "theirs.onnx"
    export(source, Text(), (torch.zeros(2, 9, 32), torch.ones(2, 1, 9, 9)), ("tokens", "mask"), ("out",))
    code, record = inspected(source, capsys)
    assert code == 1
    assert "no input takes pictures" in record["refused"]


def test_a_pyramid_is_refused_by_name(tmp_path, capsys):
    class Pyramid(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layer = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "batch_first": True}
            self.patches = torch.nn.Conv2d(3, 32, 8, 8)
            self.first, self.second = (torch.nn.TransformerEncoderLayer(**layer) for _ in range(2))
            self.fewer = torch.nn.Conv2d(32, 32, 2, 2)

        def forward(self, picture):
            tokens = self.first(self.patches(picture).flatten(2).transpose(1, 2))
            whole = self.fewer(tokens.transpose(1, 2).unflatten(2, (8, 8)))
            return self.second(whole.flatten(2).transpose(1, 2)).mean(1)

    source = tmp_path / "theirs.onnx"
    export(source, Pyramid(), (torch.zeros(2, 3, 64, 64),), ("picture",), ("out",))
    assert put_in(source, tmp_path / "x.onnx", *ITAE) == 2
    assert "pyramid" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


class Baked(torch.nn.Module):
    """A ViT whose class token is repeated for the batch that it was traced with."""

    def __init__(self):
        super().__init__()
        self.model = model_of("vit", "eager")

    def forward(self, picture):
        tokens = self.model(picture).last_hidden_state
        return tokens.reshape(int(picture.shape[0]), 17, 32)[:, 0]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_graph_that_takes_the_batch_of_its_trace_whatever_it_says(batch, tmp_path, capsys):
    """The batch is said to be dynamic, and a Reshape has a number in its place: common in the wild."""
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    export(source, Baked(), (torch.randn(batch, 3, 64, 64),), ("picture",), ("cls",))
    assert main(["--onnx", str(source), "--out", str(out), *ITAE]) == 0
    assert f"a batch of {batch} alone" in " ".join(capsys.readouterr().err.split())
    assert read_manifest(out).inputs[0].shape == (batch, 3, 64, 64)
    assert run_main(["verify", str(out)]) == 0


class Einsums(torch.nn.Module):
    """One layer whose products are Einsum over (B·H, N, d), and whose keys have no bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.patches = torch.nn.Conv2d(3, 32, 16, 16)
        self.query, self.value = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
        self.key = torch.nn.Linear(32, 32, bias=False)

    def forward(self, picture):
        tokens = self.patches(picture).flatten(2).transpose(1, 2)
        flat = tokens.reshape(-1, 32)
        parts = [self.query(flat).view(-1, 16, 32), self.key(tokens), self.value(flat).view(-1, 16, 32)]
        q, k, v = (one.unflatten(2, (4, 8)).transpose(1, 2).flatten(0, 1) for one in parts)
        weights = (torch.einsum("bid,bjd->bij", q, k) * 8**-0.5).softmax(-1)
        found = torch.einsum("bij,bjd->bid", weights, v)
        return found.unflatten(0, (-1, 4)).transpose(1, 2).flatten(2).mean(1)


def test_einsum_in_three_dimensions_and_one_projection_of_rows(tmp_path, capsys):
    source, out = tmp_path / "theirs.onnx", tmp_path / "x.onnx"
    export(source, Einsums(), (torch.randn(2, 3, 64, 64),), ("picture",), ("mean",))
    code, record = inspected(source, capsys)
    assert (code, record["layers"], record["prefix_tokens"]) == (0, 1, 0)
    assert record["sites"][0]["form"].startswith("Einsum")
    assert put_in(source, out, *ITAE) == 0
    assert any(one.flagged and one.effect > 1e-4 for one in read_manifest(out).parity.checks)


def test_talking_heads_are_refused_by_name(tmp_path, capsys):
    class Talking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mix = torch.nn.Conv2d(3, 32, 16, 16), torch.nn.Linear(4, 4)

        def forward(self, picture):
            tokens = self.patches(picture).flatten(2).transpose(1, 2)
            heads = tokens.unflatten(2, (4, 8)).transpose(1, 2)
            weights = (heads @ heads.transpose(2, 3)).softmax(-1)
            return (self.mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ heads).mean((1, 2))

    source = tmp_path / "theirs.onnx"
    export(source, Talking(), (torch.randn(2, 3, 64, 64),), ("picture",), ("mean",))
    assert put_in(source, tmp_path / "x.onnx", *ITAE) == 2
    assert "talking heads" in capsys.readouterr().err


def test_weights_that_are_inputs_too_stay_so(exported, tmp_path):
    """IR 3 asks for it; the weights that ITAE adds need a later one."""
    model = onnx.load(exported("vit", "eager", "ts14"))
    model.ir_version = 3
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in model.graph.initializer
    )
    onnx.save(model, tmp_path / "theirs.onnx")
    assert put_in(tmp_path / "theirs.onnx", tmp_path / "x.onnx", *ITAE) == 0
    written = onnx.load(tmp_path / "x.onnx")
    assert written.graph.input == model.graph.input
    assert written.ir_version == 4


@pytest.mark.parametrize(("axis", "size"), [(2, -4), (2, 1 << 40), (0, 1 << 33)])
def test_sizes_that_no_picture_has_are_refused(axis, size, exported, tmp_path, capsys):
    model = onnx.load(exported("vit", "eager", "ts14"))
    model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(model, tmp_path / "theirs.onnx")
    assert put_in(tmp_path / "theirs.onnx", tmp_path / "x.onnx") == 2
    assert "it can't be run here" in capsys.readouterr().err


def test_attention_over_channels_is_refused_by_name(tmp_path, capsys):
    class Channels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.qkv = torch.nn.Conv2d(3, 32, 16, 16), torch.nn.Linear(32, 96)

        def forward(self, picture):
            tokens = self.patches(picture).flatten(2).transpose(1, 2)
            q, k, v = self.qkv(tokens).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 4, 1)  # (B, H, d, N)
            return ((q @ k.transpose(2, 3)).softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2).mean(1)

    source = tmp_path / "theirs.onnx"
    export(source, Channels(), (torch.randn(2, 3, 64, 64),), ("picture",), ("mean",))
    assert put_in(source, tmp_path / "x.onnx", *ITAE, "--prefix-tokens", "0") == 2
    assert "XCiT" in capsys.readouterr().err
