"""`--model`: models of transformers and timm by their names, against what the library itself computes."""

import importlib.util
import json
import pickle
import shutil

import huggingface_hub.constants
import named_models
import numpy as np
import pytest
import torch
from foreign_models import images, results
from named_models import CLASSIFIER, FAMILIES, WHOLE
from torchvision_stand_in import torchvision_stand_in

from exporter import trace
from exporter.__main__ import main
from exporter.calibration.recommendation import to_json
from exporter.image_processor import PROCESSORS
from exporter.models import from_timm, from_transformers, hub
from runtime.__main__ import main as run_main
from runtime.contract.errors import WeightsError
from runtime.contract.manifest import read_manifest, sha256_file

ATOL = 1e-4
NONE_FLAGGED = ("--threshold", "ratio:50")
PREFIX = {"deit": 2, "registers": 5, "dinov3": 5, "siglip": 0, "ijepa": 0}
"""Tokens before the patches; 1 elsewhere."""
POOLED = ("beit", "clip", "siglip", "dinov2", "registers", "dinov3")
"""Families whose checkpoints here have what the library pools with."""


def export(model, out, *options):
    return main(["--model", str(model), "--out", str(out), "--quiet", *options])


def check_proof(manifest):
    """Some patches of the golden images are flagged in one check, visibly, and all are within the limit."""
    checks = manifest["parity"]["checks"]
    assert any(0 < one["flagged"] < one["patches"] and one["effect"] > 1e-3 for one in checks)
    assert all(one["max_abs"] < ATOL for one in checks)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_transformers_gives_what_the_library_gives(family, tmp_path):
    eager = named_models.save(tmp_path / "model", family)
    out, prefix = tmp_path / "x.onnx", PREFIX.get(family, 1)
    assert export(f"hf:{tmp_path}/model", out, "--outputs", "embedding,patch_tokens", *NONE_FLAGGED) == 0
    manifest = json.loads((tmp_path / "x.onnx.json").read_text())
    pictures = images(3)
    with torch.no_grad():
        found = eager(torch.from_numpy(pictures))
    tokens = found.last_hidden_state
    embedding = found.pooler_output if family in POOLED else tokens[:, 0] if prefix else tokens.mean(1)
    got = results(out, pictures)
    np.testing.assert_allclose(got[0], embedding.numpy(), rtol=0, atol=ATOL)
    np.testing.assert_allclose(got[1], tokens[:, prefix:].numpy(), rtol=0, atol=ATOL)
    assert manifest["parity"]["checks"][0]["flagged"] == 0  # so the lines above compare plain results
    check_proof(manifest)
    assert manifest["foreign"]["prefix"] == prefix
    assert manifest["foreign"]["producer"].startswith("transformers ")
    assert manifest["model"]["size"] == f"hf:{tmp_path}/model"
    assert manifest["model"]["weights"]["kind"] == "path"
    assert run_main(["verify", str(out)]) == 0


@pytest.mark.parametrize("family", WHOLE)
def test_the_tower_of_a_whole_model_is_found_in_its_checkpoint(family, tmp_path):
    kind, config = WHOLE[family]
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    found = from_transformers.load(f"hf:{tmp_path}", "auto", None)
    tower = model.image_encoder if family == "git" else model.vision_model
    pictures = torch.from_numpy(images(3))
    with torch.no_grad():
        want = tower(pictures).last_hidden_state
        torch.testing.assert_close(found.module.run(pictures)[0], want, rtol=0, atol=ATOL)
    assert any("left out" in note for note in found.origin.notes)


def test_another_size_has_the_librarys_own_position_embedding_stored(tmp_path):
    eager = named_models.save(tmp_path / "model", "clip")
    out = tmp_path / "x.onnx"
    assert export(f"hf:{tmp_path}/model", out, "--image-size", "96x80", *NONE_FLAGGED) == 0
    pictures = np.random.default_rng(5).standard_normal((2, 3, 96, 80)).astype(np.float32)
    with torch.no_grad():
        want = eager(torch.from_numpy(pictures), interpolate_pos_encoding=True).pooler_output
    np.testing.assert_allclose(results(out, pictures)[0], want.numpy(), rtol=0, atol=ATOL)


def test_pictures_are_made_as_the_processor_says_and_the_embedding_as_the_user_says(tmp_path, capsys):
    eager = named_models.save(tmp_path / "model", "vit", CLASSIFIER)
    out = tmp_path / "x.onnx"
    assert main(["--model", f"hf:{tmp_path}/model", "--out", str(out), "--pooling", "cls+mean", *NONE_FLAGGED]) == 0
    assert "left out classifier (2 tensors)" in " ".join(capsys.readouterr().err.split())
    manifest = json.loads((tmp_path / "x.onnx.json").read_text())
    found = manifest["preprocessing"]
    assert (found["mean"], found["std"], found["fit"], found["crop"]) == ([0.5] * 3, [0.25] * 3, "squash", [64, 64])
    assert (manifest["options"]["pooling"], manifest["model"]["width"]) == ("cls+mean", 32)
    pictures = images(4)
    with torch.no_grad():
        tokens = eager(torch.from_numpy(pictures)).last_hidden_state
    want = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    np.testing.assert_allclose(results(out, pictures)[0], want.numpy(), rtol=0, atol=ATOL)


def test_seeded_weights_need_no_weights_and_are_those_of_their_seed(tmp_path):
    FAMILIES["dinov2"][1].save_pretrained(tmp_path / "model")
    found = [from_transformers.load(f"hf:{tmp_path}/model", f"random:{seed}", None).origin for seed in (1, 1, 2)]
    assert [(one.kind, one.source) for one in found] == [("random", f"random:{seed}") for seed in (1, 1, 2)]
    assert found[0].sha256 == found[1].sha256 != found[2].sha256


class Hostile:
    def __reduce__(self):
        return (open, ("hostile", "w"))


def test_a_hostile_folder_runs_no_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named_models.save(tmp_path / "model", "vit")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps({"vit.layernorm.weight": Hostile()}))
    assert export("hf:./model", tmp_path / "x.onnx") == 2
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "mine.py").write_text("open('hostile', 'w')")
    capsys.readouterr()
    assert export("hf:./model", tmp_path / "x.onnx") == 2
    assert "needs code of its own, which is never run" in " ".join(capsys.readouterr().err.split())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model"]


def _fewer(folder):
    named_models.save(folder, "dinov2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (_fewer, (), "is not a checkpoint of Dinov2Model: encoder.layer.2"),
        (lambda folder: named_models.save(folder, "siglip"), ("--pooling", "cls"), "has no CLS token"),
        (
            lambda folder: FAMILIES["vit"][1].save_pretrained(folder),
            ("--weights", "random:0", "--image-size", "8"),
            "does not run on pictures of 8x8",
        ),
        (
            lambda folder: named_models.hf.ViTMAEConfig(**named_models.SIZES).save_pretrained(folder),
            ("--weights", "random:0"),
            "draws random numbers",
        ),
        (
            lambda folder: named_models.hf.BertConfig(hidden_size=16, num_attention_heads=2).save_pretrained(folder),
            ("--weights", "random:0"),
            "takes input_ids, not pictures",
        ),
        (lambda folder: folder.mkdir(), (), "no folder with a config.json"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("[")), (), "can't read"),
        (
            lambda folder: named_models.hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]).save_pretrained(
                folder
            ),
            ("--weights", "random:0"),
            "is it a convolutional network?",
        ),
        (
            lambda folder: named_models.hf.SwinConfig(
                image_size=32, embed_dim=16, depths=[1], num_heads=[2], window_size=4
            ).save_pretrained(folder),
            ("--weights", "random:0"),
            "windowed attention",
        ),
        (
            lambda folder: named_models.hf.Siglip2Config(
                text_config=named_models.TEXT, vision_config={"hidden_size": 32, "num_attention_heads": 2}
            ).save_pretrained(folder),
            ("--weights", "random:0"),
            "takes pixel_attention_mask and spatial_shapes beside pixel_values",
        ),
        (
            lambda folder: named_models.hf.ViTConfig(**{**named_models.SIZES, "num_hidden_layers": 0}).save_pretrained(
                folder
            ),
            ("--weights", "random:0"),
            "has no attention",
        ),
        (
            lambda folder: (
                folder.mkdir(),
                (folder / "config.json").write_text('{"model_type": "vit", "hidden_size": -4}'),
            ),
            ("--weights", "random:0"),
            "can't be made of its config.json",
        ),
        (
            lambda folder: FAMILIES["vit"][1].save_pretrained(folder),
            ("--weights", "hf:google/vit-base-patch16-224"),
            "a repository with its own weights is --model hf:google/vit-base-patch16-224",
        ),
    ],
    ids=[
        "layers", "no CLS token", "size", "random", "text", "no config", "no JSON", "CNN", "Swin", "NaFlex",
        "no layers", "negative", "weights of a repository",
    ],
)  # fmt: skip
def test_what_can_not_be_taken_is_refused_in_one_line_before_any_trace(
    make, options, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(trace, "export_module", None)
    make(tmp_path / "model")
    capsys.readouterr()
    assert export(f"hf:{tmp_path}/model", tmp_path / "x.onnx", *options) == 2
    err = capsys.readouterr().err
    assert message in " ".join(err.split())
    assert err.strip().count("\n") == 0
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "name", ["google/vit-base-patch16-224", "hf:", "open_clip:ViT-B-32", "timm:hf-hub:timm/x", "hf:a/b/c/d"]
)
def test_a_name_of_another_form_is_refused(name, tmp_path, capsys):
    assert export(name, tmp_path / "x.onnx") == 2
    assert not list(tmp_path.iterdir())


def test_a_hub_that_can_not_be_reached_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert export("hf:google/vit-base-patch16-224", tmp_path / "x.onnx") == 2
    err = capsys.readouterr().err
    assert "can't reach the Hugging Face hub" in err
    assert err.count("\n") == 1


def test_seeded_weights_of_a_repository_need_its_configuration_alone(tmp_path, monkeypatch):
    FAMILIES["vit"][1].save_pretrained(tmp_path / "made")
    asked = []

    def download(repository, filename, revision=None):
        asked.append(filename)
        snapshot = tmp_path / "cache" / "models--someone--vit" / "snapshots" / "abc"
        snapshot.mkdir(parents=True, exist_ok=True)
        if filename != "config.json":
            raise hub.hub_errors.RemoteEntryNotFoundError("none", response=None)
        return str(shutil.copy(tmp_path / "made" / filename, snapshot / filename))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "hf_hub_download", download)
    found = from_transformers.load("hf:someone/vit", "random:1", None)
    assert found.origin.kind == "random"
    assert asked == ["config.json", *PROCESSORS]


def test_a_message_about_the_hub_names_the_option_that_was_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some" / "model").mkdir(parents=True)
    for name, message in {
        "hf:goo gle/vit": "--model hf:goo gle/vit: not the name of a repository",
        "hf:some/model": "a folder begins with a slash, a dot or a tilde: hf:./some/model",
        "hf:./nothing": "hf:./nothing is no folder with a config.json",
    }.items():
        assert export(name, tmp_path / "x.onnx") == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="session")
def timm():
    """The library with small models of its families' true architectures, by names of their own."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install --no-deps timm")
    with torchvision_stand_in():
        import timm
        import timm.layers
        from timm.models import eva, register_model, vision_transformer

    small = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    swiglu = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 4}
    kinds = {
        "itae_vit": (vision_transformer, "VisionTransformer", {}),
        "itae_reg4": (vision_transformer, "VisionTransformer", {"reg_tokens": 4, "no_embed_class": True}),
        "itae_swiglu": (vision_transformer, "VisionTransformer", {"init_values": 0.3, **swiglu}),
        "itae_gap": (vision_transformer, "VisionTransformer", {"class_token": False, "global_pool": "avg"}),
        "itae_map": (vision_transformer, "VisionTransformer", {"class_token": False, "global_pool": "map"}),
        "itae_eva02": (eva, "Eva", {"use_rot_pos_emb": True, "swiglu_mlp": True, "qkv_fused": False}),
    }
    config = {
        "input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "crop_pct": 0.8,
        "interpolation": "bicubic", "num_classes": 0,
    }  # fmt: skip
    for name, (module, kind, more) in kinds.items():

        def make(pretrained=False, pretrained_cfg=None, module=module, kind=kind, more=more, **options):
            options = {key: one for key, one in options.items() if key not in ("cache_dir", "pretrained_cfg_overlay")}
            model = getattr(module, kind)(**{**small, **more, **options})
            model.pretrained_cfg = config
            return model

        make.__name__, make.__module__ = name, module.__name__
        register_model(make)
    return timm


TIMM = {"itae_vit": 1, "itae_reg4": 5, "itae_swiglu": 1, "itae_gap": 0, "itae_map": 0, "itae_eva02": 1}


@pytest.mark.parametrize("name", TIMM)
def test_a_family_of_timm_gives_what_the_library_gives(name, timm, tmp_path):
    model, out = timm.create_model(name, num_classes=0).eval(), tmp_path / "x.onnx"
    seed = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn(one.shape, generator=seed) * 0.15)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    options = ("--weights", str(tmp_path / "mine.pth"), "--outputs", "embedding,patch_tokens", *NONE_FLAGGED)
    assert export(f"timm:{name}", out, *options) == 0
    manifest = json.loads((tmp_path / "x.onnx.json").read_text())
    pictures = images(3)
    with torch.no_grad():
        embedding = model(torch.from_numpy(pictures))
        tokens = model.forward_features(torch.from_numpy(pictures))[:, TIMM[name] :]
    got = results(out, pictures)
    np.testing.assert_allclose(got[0], embedding.numpy(), rtol=0, atol=ATOL)
    np.testing.assert_allclose(got[1], tokens.numpy(), rtol=0, atol=ATOL)
    assert manifest["parity"]["checks"][0]["flagged"] == 0
    check_proof(manifest)
    assert manifest["foreign"]["prefix"] == TIMM[name]
    assert manifest["foreign"]["producer"] == f"timm {timm.__version__}"
    found = manifest["preprocessing"]
    assert (found["mean"], found["std"], found["resize_cover"]) == ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], [80, 80])
    assert run_main(["verify", str(out)]) == 0


def test_timm_resizes_its_own_position_embedding(timm, tmp_path):
    model, out = timm.create_model("itae_reg4", num_classes=0).eval(), tmp_path / "x.onnx"
    torch.save({"state_dict": model.state_dict()}, tmp_path / "mine.pth")
    model.set_input_size(img_size=(96, 80))
    options = (
        "--weights",
        str(tmp_path / "mine.pth"),
        "--image-size",
        "96x80",
        "--threshold",
        "absolute:1e9",
        "--side",
        "high",
    )
    assert export("timm:itae_reg4", out, *options) == 0
    pictures = np.random.default_rng(5).standard_normal((2, 3, 96, 80)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.from_numpy(pictures))
    np.testing.assert_allclose(results(out, pictures)[0], want.numpy(), rtol=0, atol=ATOL)


def test_a_checkpoint_of_another_size_is_taken_at_that_size(timm, tmp_path):
    model = timm.create_model("itae_vit", num_classes=7, img_size=96).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match="trained at another size"):
        from_timm.load("timm:itae_vit", str(tmp_path / "mine.pth"), None)
    found = from_timm.load("timm:itae_vit", str(tmp_path / "mine.pth"), (96, 96))
    pictures = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 3, 96, 96)).astype(np.float32))
    with torch.no_grad():
        want = model.forward_head(model.forward_features(pictures), pre_logits=True)
        torch.testing.assert_close(
            found.module.run(pictures)[1], want, rtol=0, atol=ATOL
        )  # fused attention rounds otherwise


def test_what_timm_has_not_is_refused_in_one_line(timm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trace, "export_module", None)
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "mine.pth")
    for options, message in {
        ("timm:vit_bass_patch16_224",): "has no such model",
        ("timm:itae_vit", "--weights", str(tmp_path / "mine.pth")): "is not a checkpoint of timm's",
        ("timm:resnet10t", "--weights", "random:0", "--image-size", "64"): "is it a convolutional network?",
        ("timm:swin_s3_tiny_224", "--weights", "random:0"): "windowed attention (WindowAttention)",
        ("timm:vit_tiny_patch16_224.nothing",): "Invalid pretrained tag",
    }.items():
        assert export(options[0], tmp_path / "x.onnx", *options[1:]) == 2
        err = capsys.readouterr().err
        assert message in " ".join(err.split())
        assert err.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["mine.pth"]


@pytest.fixture(scope="module")
def plain_vit(tmp_path_factory):
    """A model, its plain file, and a calibration of that file."""
    folder = tmp_path_factory.mktemp("plain")
    eager = named_models.save(folder / "vit", "vit", CLASSIFIER)
    assert export(f"hf:{folder}/vit", folder / "plain.onnx", "--no-itae", "--outputs", "embedding") == 0
    options = {"layers": "last", "source": "residual", "threshold": "ratio:1.1", "side": "high", "attenuate": "min"}
    model = {"size": "plain.onnx", "weights": "onnx:plain.onnx", "sha256": sha256_file(folder / "plain.onnx")}
    found = {"itae": options, "reason": "made", "model": {**model, "image_size": [64, 64]}, "figures": {}}
    (folder / "itae.json").write_bytes(to_json({**found, "images": {"choosing": 1, "reporting": 1}}))
    return folder, eager


def test_the_plain_file_is_one_that_itae_goes_into(plain_vit, tmp_path, capsys):
    folder, eager = plain_vit
    plain, out = folder / "plain.onnx", tmp_path / "x.onnx"
    pictures = images(3)
    with torch.no_grad():
        want = eager(torch.from_numpy(pictures)).last_hidden_state[:, 0]
    np.testing.assert_allclose(results(plain, pictures)[0], want.numpy(), rtol=0, atol=ATOL)
    assert run_main(["verify", str(plain)]) == 0
    manifest = read_manifest(plain)
    assert manifest.options.method.name == "none"
    assert manifest.files.external_data is None
    capsys.readouterr()
    assert main(["--onnx", str(plain), "--out", str(out), "--config", str(folder / "itae.json")]) == 0
    assert "are as plain.onnx.json says" in " ".join(capsys.readouterr().err.split())
    new = read_manifest(out)
    assert new.preprocessing == manifest.preprocessing
    assert (new.options.method.threshold, new.calibration.reason) == ("ratio:1.1", "made")


def test_uint8_pictures_and_artifacts_are_those_of_the_library(plain_vit, tmp_path):
    folder, eager = plain_vit
    out = tmp_path / "x.onnx"
    words = ("--config", str(folder / "itae.json"), "--input", "uint8", "--outputs", "embedding,artifact_mask")
    assert export(f"hf:{folder}/vit", out, *words) == 0
    manifest = read_manifest(out)
    assert manifest.input.model_dump()["dtype"] == "uint8"
    assert manifest.calibration.reason == "made"
    check_proof(json.loads((tmp_path / "x.onnx.json").read_text()))
    random = np.random.default_rng(3)
    pictures = random.integers(0, 256, (6, 64, 64, 3), np.uint8)
    pictures[:3] = 128  # all patches alike but for their place
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        found = eager((pixels - 0.5) / 0.25, output_hidden_states=True)
    norm = found.hidden_states[-2][:, 1:].norm(dim=-1)  # what enters the last layer
    middle = norm.quantile(0.5, dim=1, keepdim=True)
    flags = (norm > 1.1 * middle).numpy()
    embedding, mask = results(out, pictures)
    np.testing.assert_array_equal(mask[:, 0], flags)
    assert flags.any()
    assert not flags.all(1).any()
    moved = np.abs(embedding - found.last_hidden_state[:, 0].numpy()).max(axis=1)
    assert (moved[~flags.any(1)] < ATOL).all()
    assert (moved[flags.any(1)] > 10 * ATOL).all()
    assert run_main(["verify", str(out)]) == 0


def test_calibrate_says_how_a_model_by_its_name_is_calibrated(tmp_path, capsys):
    words = ["calibrate", "--model", "hf:./vit", "--images", str(tmp_path), "--out", str(tmp_path / "itae.json")]
    assert main(words) == 2
    assert "export the model once by --model NAME --no-itae" in capsys.readouterr().err


def test_artifacts_alone_are_no_model(tmp_path, capsys):
    assert export("hf:./vit", tmp_path / "x.onnx", "--outputs", "artifact_mask") == 2
    assert "add embedding or patch_tokens" in capsys.readouterr().err
