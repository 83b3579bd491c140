"""Makes the cases of the contract that Python's and C++'s tests both run: `python tests/conformance/make.py`.

`cases/base/` holds a model and the files beside it: `m.onnx` (a few bytes: the contract never looks inside),
`m.onnx.json`, `m.onnx.data`, `m.onnx.parity.npz`. A case is a folder whose files are put over a copy of these.
`cases/contract.json` lists the cases, each with

- `name`: its folder below `cases/`;
- `remove`: files of the copy that are removed;
- `call`: `manifest` reads the manifest alone, `files` checks the model and its external data too, `golden` reads the
  golden sample, `compare` also holds the outputs in `got.npz` to it and to the manifest's limits;
- `says`: words of the refusal, all of which it has; null if nothing is refused;
- `parity`: for `compare`, what is found.

`cases/npy/` holds arrays for the fuzzers of C++ to start from.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from manifests import sealed  # noqa: E402

from runtime.contract.comparison import compare  # noqa: E402
from runtime.contract.golden import read_golden  # noqa: E402
from runtime.contract.manifest import read_manifest  # noqa: E402

CASES = Path(__file__).parent / "cases"
MODEL = "m.onnx"
MANIFEST, DATA, GOLDEN = f"{MODEL}.json", f"{MODEL}.data", f"{MODEL}.parity.npz"
N, K, P, C = 4, 2, 2, 6
"""Samples, chosen layers, patches and width of the base."""
HEIGHT, WIDTH = 2, 4
MARGIN = 2**-10
FIGURES = ("max_abs", "min_cosine", "norm_relative", "max_relative")
"""Of a comparison: numbers, as text where JSON has none."""
EVERYTHING = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")

Fields = dict[str, Any]
Edit = Callable[[Fields], object]


@dataclass(frozen=True)
class Case:
    """One case; `files` by name, None for one that is removed."""

    name: str
    call: str
    files: dict[str, bytes | None]
    says: tuple[str, ...] | None


# --- the base


def arrays() -> dict[str, np.ndarray]:
    """A golden sample by the names in its file."""
    rng = np.random.default_rng(0)
    flags = np.zeros((N, K, P), bool)
    flags[:, :, 0] = True
    return {
        "input": rng.integers(0, 256, (N, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "flags": flags,
        "flag_distance": np.full((N, K, P), 0.5, np.float32),
        "embedding": rng.standard_normal((N, C)).astype(np.float32),
        "patch_tokens": rng.standard_normal((N, P, C)).astype(np.float32),
        "artifact_norm": rng.uniform(1, 2, (N, K, P)).astype(np.float32),
    }


def npz(content: dict[str, np.ndarray], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **content)
    return buffer.getvalue()


def record(name: str, content: bytes) -> Fields:
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


BASE = {MODEL: b"bytes of a model", DATA: b"bytes of its weights", GOLDEN: npz(arrays())}


def fields(**files: bytes) -> Fields:
    """The fields of a manifest that fits the base, but for `files`: `golden` or `model`."""
    shapes = {"embedding": [C], "patch_tokens": [P, C], "artifact_norm": [K, P], "artifact_mask": [K, P]}
    return {
        "format_version": 2,
        "options": {
            "size": "tiny",
            "weights": "random:0",
            "backend": "none",
            "precision": "fp32",
            "image_size": [HEIGHT, WIDTH],
            "batch": None,
            "method": {
                "name": "itae",
                "layers": [1, 3],
                "source": "key",
                "threshold": "mad:5",
                "side": "high",
                "attenuate": "mask",
            },
            "outputs": list(EVERYTHING),
            "pooling": "cls",
            "normalize": False,
            "cls_only": False,
            "input": "uint8",
            "pos_embed": "meta",
            "workspace_mib": None,
            "parity_samples": N,
        },
        "model": {
            "size": "tiny",
            "registers": 0,
            "patch": 2,
            "width": C,
            "heads": 2,
            "depth": 4,
            "weights": {"kind": "random", "source": "random:0", "revision": None, "sha256": "a" * 64},
        },
        "inputs": [{"name": "images", "dtype": "uint8", "shape": ["batch", HEIGHT, WIDTH, 3]}],
        "outputs": [
            {
                "name": name,
                "dtype": "bool" if name == "artifact_mask" else "float32",
                "shape": ["batch", *shapes[name]],
            }
            for name in EVERYTHING
        ],
        "preprocessing": {
            "exif_orientation": "applied",
            "color": "RGB",
            "alpha": "white",
            "gray16": "div257",
            "resize_filter": "bicubic",
            "resize_order": "pillow13",
            "fit": "crop",
            "resize_cover": [4, 8],
            "crop": [HEIGHT, WIDTH],
            "layout": "NHWC",
            "dtype": "uint8",
            "scale": 1 / 255,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "normalized_by": "graph",
        },
        "builder": {"name": "onnx", "version": "1.19", "platform": "x86_64"},
        "parity": {
            "limits": {
                "max_abs": 1e-4,
                "min_cosine": None,
                "flag_margin": MARGIN,
                "batch_distance": 1e-5,
                "normalized": False,
            },
            "checks": [
                {
                    "purpose": "exported",
                    "threshold": None,
                    "samples": N,
                    "patches": N * K * P,
                    "flagged": N * K,
                    "margins": [0.5] * N,
                    "borderline": [],
                    "left_out": [],
                    "max_abs": 1e-6,
                    "min_cosine": 1.0,
                    "effect": 0.5,
                }
            ],
        },
        "fusion": None,
        "replay": None,
        "files": {
            "model": record(MODEL, files.get("model", BASE[MODEL])),
            "external_data": record(DATA, BASE[DATA]),
            "parity": record(GOLDEN, files.get("golden", BASE[GOLDEN])),
        },
        "versions": {"numpy": "2.0"},
    }


def edited(*edits: Edit, **files: bytes) -> bytes:
    """The bytes of the base's manifest after these edits, with a hash of its own that fits."""
    content = fields(**files)
    for edit in edits:
        edit(content)
    return sealed(content)


def put(*path: str | int, value: object) -> Edit:
    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


def drop(*path: str | int) -> Edit:
    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return edit


# --- manifests


def manifest(name: str, content: bytes | None, *says: str) -> Case:
    """A manifest that is refused in these words, or taken if there are none."""
    return Case(f"manifest/{name}", "manifest", {MANIFEST: content}, says or None)


def field(name: str, edit: Edit, where: str, newer: bool = False) -> Case:
    """A manifest whose hash fits, refused for one field."""
    words = (f"{MANIFEST}: {where}: ", *(["upgrade itae, or "] if newer else []), f"export {MODEL} again")
    return manifest(name, edited(edit), *words)


def not_json() -> Iterator[Case]:
    whole = edited()
    texts = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "words": b"not json",
        "two-values": whole + b"{}",
        "bad-utf8": whole.replace(b'"tiny"', b'"ti\xffy"', 1),
        "nan": whole.replace(b"[0.485,", b"[NaN,", 1),
        "minus-infinity": whole.replace(b"[0.485,", b"[-Infinity,", 1),
        "too-large-a-number": whole.replace(b"[0.485,", b"[1e999,", 1),
        "comma-at-the-end": whole.replace(b'"2.0"}', b'"2.0",}', 1),
        "comment": whole.replace(b"{", b"{ // no\n", 1),
        "single-quotes": whole.replace(b'"', b"'"),
        "control-character": whole.replace(b'"tiny"', b'"ti\ny"', 1),
        "two-members-of-one-name": whole.replace(b'"options": {', b'"options": {}, "options": {', 1),
        "two-members-of-one-name-deep": whole.replace(b'"size": "tiny"', b'"size": "tiny", "size": "tiny"', 1),
        "deep": b'{"format_version": 2, "x": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    }
    for name, text in texts.items():
        assert text != whole
        yield manifest(f"not-json-{name}", text, f"{MANIFEST} is not JSON (", "it was truncated or altered")
    surrogate = edited(put("later", value="@")).replace(b"@", b"\\ud800")
    yield manifest("half-a-surrogate-pair", surrogate, MANIFEST, f"export {MODEL} again")


def versions() -> Iterator[Case]:
    for name, value in {"null": None, "true": True, "fraction": 2.0, "text": "2", "list": [2]}.items():
        yield manifest(
            f"version-{name}", edited(put("format_version", value=value)), f"{MANIFEST} has no format_version"
        )
    yield manifest("version-missing", edited(drop("format_version")), f"{MANIFEST} has no format_version")
    for name, text in {"list": b"[]", "null": b"null", "number": b"2", "text": b'"x"', "empty": b"{}"}.items():
        yield manifest(f"json-{name}", text, f"{MANIFEST} has no format_version: not a manifest")
    newer = b'{"format_version": 3, "what": "ever"}'
    yield manifest("version-newer", newer, "has manifest format 3, this version reads up to 2: upgrade itae")
    for name, value in {"zero": 0, "negative": -1}.items():
        yield field(f"version-{name}", put("format_version", value=value), "format_version", newer=True)


def own_hash() -> Iterator[Case]:
    whole = edited()
    digits = json.loads(whole)["manifest_sha256"].encode()
    texts = {
        "other-digits": whole.replace(digits, b"0" * 64),
        "null": whole.replace(b'"' + digits + b'"', b"null"),
        "number": whole.replace(b'"' + digits + b'"', b"1"),
        "short": whole.replace(digits, digits[:-1]),
        "capitals": whole.replace(digits, digits.upper()),
        "none": json.dumps(fields()).encode(),
        "field-altered": whole.replace(b'"vit', b'"', 1).replace(b'"depth": 4', b'"depth": 5', 1),
        "space-added": whole.replace(b'"depth": 4', b'"depth":  4', 1),
        "twice": whole.replace(b'"2.0"', b'"' + digits + b'"', 1),
    }
    for name, text in texts.items():
        assert text != whole
        yield manifest(f"hash-{name}", text, "does not match its own hash: it was altered or only partly written")
    escaped = fields() | {"manifest_sha256": "here"}
    text = json.dumps(escaped).encode().replace(b'"here"', b'"' + b"0" * 63 + b"\\u0030" + b'"')
    yield manifest("hash-escaped", text, "does not match its own hash")


def wrong_fields() -> Iterator[Case]:
    method = {"name": "registers"}
    yield field("no-method", put("options", "method", value=None), "options.method")
    yield field("method-without-a-name", put("options", "method", value={}), "options.method")
    yield field("unknown-method", put("options", "method", value=method), "options.method", newer=True)
    layers = ("options", "method", "layers")
    yield field("itae-in-no-layer", put(*layers, value=[]), "options.method.itae.layers")
    yield field("negative-layer", put(*layers, value=[-1]), "options.method.itae.layers.0")
    yield field("missing-field", drop("builder"), "builder")
    yield field("missing-inner-field", drop("files", "parity", "sha256"), "files.parity.sha256")
    yield field("text-for-a-number", put("model", "width", value="6"), "model.width")
    yield field("true-for-a-number", put("model", "width", value=True), "model.width")
    yield field("fraction-for-a-count", put("model", "width", value=6.0), "model.width")
    yield field("zero-width", put("model", "width", value=0), "model.width")
    yield field("negative-bytes", put("files", "model", "bytes", value=-1), "files.model.bytes")
    yield field("null-for-an-object", put("preprocessing", value=None), "preprocessing")
    yield field("list-for-an-object", put("options", value=[]), "options")
    yield field("object-for-a-list", put("outputs", value={}), "outputs")
    yield field("number-for-a-text", put("model", "size", value=1), "model.size")
    yield field("number-for-true", put("options", "normalize", value=1), "options.normalize")
    yield field("text-for-a-scale", put("preprocessing", "scale", value="1"), "preprocessing.scale")
    yield field("two-means", put("preprocessing", "mean", value=[0.5, 0.5]), "preprocessing.mean.2")
    yield field("three-sides", put("options", "image_size", value=[2, 2, 2]), "options.image_size")
    yield field("one-side", put("options", "image_size", value=[2]), "options.image_size.1")
    yield field("batch-of-two", put("options", "batch", value=[1, 2]), "options.batch.2")
    yield field("no-input", put("inputs", value=[]), "inputs")
    yield field("two-inputs", lambda content: content["inputs"].append(content["inputs"][0]), "inputs")
    yield field("no-output", put("outputs", value=[]), "outputs")
    yield field("short-hash", put("files", "model", "sha256", value="ab"), "files.model.sha256")
    yield field("capitals-in-a-hash", put("files", "model", "sha256", value="A" * 64), "files.model.sha256")
    yield field("version-of-a-library-is-a-number", put("versions", "numpy", value=2), "versions.numpy")
    yield field("check-without-samples", put("parity", "checks", 0, "samples", value=0), "parity.checks.0.samples")
    deep = json.loads("[" * 150 + "]" * 150)
    yield field("deep-in-a-field", put("versions", "x", value=deep), "versions.x")
    words: dict[str, tuple[str | int, ...]] = {
        "precision": ("options", "precision"),
        "backend": ("options", "backend"),
        "pooling": ("options", "pooling"),
        "position-embedding": ("options", "pos_embed"),
        "weights": ("model", "weights", "kind"),
        "dtype": ("inputs", 0, "dtype"),
        "orientation": ("preprocessing", "exif_orientation"),
        "colour": ("preprocessing", "color"),
        "alpha": ("preprocessing", "alpha"),
        "gray16": ("preprocessing", "gray16"),
        "filter": ("preprocessing", "resize_filter"),
        "order": ("preprocessing", "resize_order"),
        "layout": ("preprocessing", "layout"),
        "normalized-by": ("preprocessing", "normalized_by"),
        "builder": ("builder", "name"),
        "purpose": ("parity", "checks", 0, "purpose"),
    }
    for name, path in words.items():
        yield field(f"unknown-word-{name}", put(*path, value="later"), ".".join(map(str, path)), newer=True)
    yield field("unknown-word-fit", put("preprocessing", "fit", value="fill"), "preprocessing.fit", newer=True)
    for fit, cover in (("crop", None), ("pad", [4, 8]), ("squash", [4, 8]), (None, None)):
        edit = put("preprocessing", "resize_cover", value=cover)
        other = drop("preprocessing", "fit") if fit is None else put("preprocessing", "fit", value=fit)
        name = f"fit-{fit or 'missing'}-{'covers-nothing' if cover is None else 'covers'}"
        yield manifest(name, edited(edit, other), f"{MANIFEST}: preprocessing")
    names = {
        "empty": "", "dot": ".", "dots": "..", "parent": "../x", "folder": "a/b", "absolute": "/etc/passwd",
        "backslash": "a\\b", "nul": "a\0b", "slash-at-the-end": "a/", "long": "x" * 256,
    }  # fmt: skip
    for name, value in names.items():
        yield field(f"file-name-{name}", put("files", "parity", "name", value=value), "files.parity.name")
    for which in ("model", "external_data"):
        yield field(f"file-name-{which}", put("files", which, "name", value="../x"), f"files.{which}.name")


def good_manifests() -> Iterator[Case]:
    yield manifest("good", edited())
    yield manifest("good-indented", sealed_with(indent=2))
    yield manifest("good-other-order", sealed(dict(reversed(fields().items()))))
    yield manifest("good-unknown-fields", edited(put("later", value={"a": [1]}), put("files", "later", value=1)))
    yield manifest("good-unknown-field-with-the-hashs-name", edited(put("later", value={"manifest_sha256": "0" * 64})))
    yield manifest("good-deep-unknown-field", edited(put("later", value=json.loads("[" * 199 + "]" * 199))))
    yield manifest("deeper-unknown-field", edited(put("later", value=json.loads("[" * 202 + "]" * 202))), MANIFEST)
    yield manifest(
        "good-pad", edited(put("preprocessing", "fit", value="pad"), put("preprocessing", "resize_cover", value=None))
    )
    quantization = {
        **dict.fromkeys(["worst_cosine", "median_cosine", "neighbours", "same_centroid"], 0.9995),
        **dict.fromkeys(["calibrated", "checked", "int8_layers"], 16),
        "unreadable": 0,
        "min_cosine": 0.999,
        "float32_layers": ["w"],
    }
    yield manifest(
        "good-int8", edited(put("options", "precision", value="int8"), put("quantization", value=quantization))
    )
    yield manifest("good-without-fit", edited(drop("preprocessing", "fit")))
    yield manifest("good-integers-for-numbers", edited(put("preprocessing", "scale", value=1)))
    yield manifest(
        "good-engine", edited(put("options", "batch", value=[1, 2, 8]), put("builder", "name", value="tensorrt"))
    )
    yield manifest(
        "good-no-limits", edited(put("parity", "limits", value=dict.fromkeys(["max_abs", "min_cosine", "flag_margin"])))
    )
    for name, value in {"hidden": ".a", "three-dots": "...", "long": "é" * 127, "space": "a b"}.items():
        yield manifest(f"good-file-name-{name}", edited(put("files", "parity", "name", value=value)))


def sealed_with(**layout: Any) -> bytes:
    """As `sealed`, in another layout of the same JSON."""
    text = json.dumps({**fields(), "manifest_sha256": "0" * 64}, **layout).encode()
    before, zeros, after = text.rpartition(b"0" * 64)
    assert zeros
    return before + hashlib.sha256(text).hexdigest().encode() + after


def files() -> Iterator[Case]:
    swapped = f"that {MANIFEST} gives: it was swapped, altered or only partly written; export it again"
    yield Case("files/good", "files", {}, None)
    model = BASE[MODEL]
    flipped = bytes([model[0] ^ 1]) + model[1:]
    yield Case("files/model-altered", "files", {MODEL: flipped}, (f"{MODEL} has not the SHA-256 {swapped}",))
    yield Case("files/model-cut", "files", {MODEL: model[:-1]}, (f"{MODEL} has 15 bytes, not the 16 {swapped}",))
    yield Case("files/model-longer", "files", {MODEL: model + b"x"}, (f"has 17 bytes, not the 16 {swapped}",))
    yield Case("files/model-missing", "files", {MODEL: None}, ("no such model file; make one with",))
    yield Case("files/manifest-missing", "files", {MANIFEST: None}, (f"has no manifest {MANIFEST} beside it",))
    yield Case("files/data-altered", "files", {DATA: bytes(20)}, (f"{DATA} has not the SHA-256 {swapped}",))
    yield Case("files/data-cut", "files", {DATA: b""}, (f"{DATA} has 0 bytes, not the 20 {swapped}",))
    missing = "No such file or directory; copy it along under that name"
    yield Case("files/data-missing", "files", {DATA: None}, ("can't read ", f"{DATA}, which the manifest of", missing))
    yield Case(
        "files/no-data", "files", {DATA: None, MANIFEST: edited(put("files", "external_data", value=None))}, None
    )


# --- golden samples


def golden(name: str, content: bytes, *says: str, edit: Edit = lambda _: None) -> Case:
    """A golden sample under a manifest that fits its bytes, as a forger makes it."""
    return Case(f"golden/{name}", "golden", {GOLDEN: content, MANIFEST: edited(edit, golden=content)}, says or None)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def with_header(text: str, data: bytes = b"") -> bytes:
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + data


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as out:
        for name, content in members.items():
            out.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def members(**replaced: bytes) -> dict[str, bytes]:
    """The members of the base's golden sample, some of them replaced."""
    return {f"{name}.npy": replaced.get(name, npy(array)) for name, array in arrays().items()}


def patched(offset: int, value: bytes) -> bytes:
    """The base's golden sample, with bytes of the central directory's first entry set."""
    data = bytearray(BASE[GOLDEN])
    at = data.index(b"PK\x01\x02") + offset
    data[at : at + len(value)] = value
    return bytes(data)


def golden_samples() -> Iterator[Case]:
    good = arrays()
    no = f"{GOLDEN} is not a golden sample ("
    yield golden("good", BASE[GOLDEN])
    yield golden("good-deflated", npz(good, compressed=True))
    yield golden("good-npy-version-2", archive(members(embedding=npy(good["embedding"], (2, 0)))))
    yield golden("good-fortran-order", npz(good | {"patch_tokens": np.asfortranarray(good["patch_tokens"])}))
    yield golden("good-one-array-more", npz(good | {"later": np.zeros(3)}))
    without = (put("outputs", value=fields()["outputs"][:1]), put("options", "outputs", value=["embedding"]))
    needed = {name: good[name] for name in ("input", "embedding", "flags", "flag_distance")}
    yield golden("good-embedding-alone", npz(needed), edit=lambda content: [one(content) for one in without])
    yield golden(
        "good-float32-input", npz(good | {"input": np.zeros((N, 3, HEIGHT, WIDTH), np.float32)}), edit=as_float32
    )
    mean = put("options", "pooling", value="cls+mean")
    yield golden("good-two-poolings", npz(good | {"embedding": np.ones((N, 2 * C), np.float32)}), edit=mean)

    texts = {
        "empty": b"",
        "words": b"not an npz",
        "pickle": b"\x80\x04N.",
        "one-array": npy(np.zeros(3)),
        "cut": BASE[GOLDEN][:-30],
        "cut-in-a-member": BASE[GOLDEN][:900],
        "no-members": archive({}),
        "encrypted": patched(8, b"\x01"),
        "unknown-compression": patched(10, b"\x63"),
        "larger-than-2-gib": patched(24, b"\xff\xff\xff\xfe"),
        "wrong-checksum": patched(16, b"\0\0\0\0"),
        "objects": npz(good | {"input": np.array([{}], object)}),
        "no-npy": archive(members(input=b"rubbish")),
        "cut-npy": archive(members(input=npy(good["input"])[:-1])),
        "cut-header": archive(members(input=npy(good["input"])[:60])),
        "npy-version-9": archive(members(input=npy(good["input"]).replace(b"NUMPY\x01", b"NUMPY\x09"))),
        "open-bracket": archive(members(input=with_header("(((("))),
        "long-header": archive(members(input=with_header(" " * 20_000 + "{}"))),
        "unknown-key": archive(
            members(input=with_header("{'descr': '|u1', 'fortran_order': False, 'size': (1,)}", b"1"))
        ),
        "missing-key": archive(members(input=with_header("{'descr': '|u1', 'fortran_order': False}", b"1"))),
        "no-such-dtype": archive(members(input=with_header("{'descr': '<q9', 'fortran_order': False, 'shape': (1,)}"))),
        "huge-shape": archive(
            members(input=with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,)}"))
        ),
        "shape-beyond-64-bits": archive(
            members(input=with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**20},)}}"))
        ),
        "overflowing-shape": archive(
            members(input=with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**32}, {2**32})}}"))
        ),
        "negative-shape": archive(
            members(input=with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"))
        ),
    }
    for name, content in texts.items():
        yield golden(name, content, no, "export the model again")
    for name in ("input", "embedding", "flags", "flag_distance"):
        rest = {key: array for key, array in good.items() if key != name}
        yield golden(f"without-{name}", npz(rest), f"'{name} is not a file in the archive'")
    for name in ("patch_tokens", "artifact_norm"):
        rest = {key: array for key, array in good.items() if key != name}
        yield golden(f"without-{name}", npz(rest), f"holds no `{name}`, which the model outputs")
    for name in good:
        shorter = good | {name: good[name][:-1]}
        # With a sample less of `input`, it is the next array that has one too many.
        yield golden(f"sample-less-{name}", npz(shorter), f"`{'embedding' if name == 'input' else name}` is ")
        yield golden(f"column-less-{name}", npz(good | {name: good[name][..., :-1]}), f"`{name}` is ")
        yield golden(f"int16-{name}", npz(good | {name: good[name].astype(np.int16)}), f"`{name}` is int16(")
    wide = {name: np.concatenate([array] * 2, axis=2) for name, array in good.items() if array.shape[1:] == (K, P)}
    wide = good | wide | {"patch_tokens": np.concatenate([good["patch_tokens"]] * 2, axis=1)}
    yield golden("good-grid-of-a-foreign-graph", npz(wide), edit=with_a_grid)
    yield golden("other-grid-of-a-foreign-graph", npz(good), "`flags` is ", edit=with_a_grid)
    yield golden("good-own-outputs", npz(own_arrays()), edit=with_own_outputs)
    yield golden(
        "without-an-own-output",
        npz({key: array for key, array in own_arrays().items() if key != "output1"}),
        "'output1 is not a file",
        edit=with_own_outputs,
    )
    shorter = own_arrays()
    shorter["output1"] = shorter["output1"][..., :-1]
    yield golden("column-less-of-an-own-output", npz(shorter), "`a/map` is ", edit=with_own_outputs)
    both = lambda content: [with_own_outputs(content), content["outputs"].append(fields()["outputs"][0])]  # noqa: E731
    yield golden("good-own-outputs-and-an-embedding", npz(own_arrays() | {"embedding": good["embedding"]}), edit=both)
    yield golden("own-outputs-without-the-embedding", npz(own_arrays()), "holds no `embedding`", edit=both)
    yield golden("scalar", npz(good | {"input": np.zeros((), np.uint8)}), "`input` is uint8()")
    yield golden("no-samples", npz({name: array[:0] for name, array in good.items()}), "holds no sample")
    altered = bytearray(BASE[GOLDEN])
    altered[200] ^= 1
    yield Case("golden/altered", "golden", {GOLDEN: bytes(altered)}, (f"{GOLDEN} has not the SHA-256",))
    yield Case("golden/shorter", "golden", {GOLDEN: BASE[GOLDEN][:-1]}, (f"not the {len(BASE[GOLDEN])} that",))
    yield Case("golden/missing", "golden", {GOLDEN: None}, ("can't read ", "No such file or directory"))
    huge = put("files", "parity", "bytes", value=3 << 30)
    yield Case("golden/said-to-have-3-gib", "golden", {MANIFEST: edited(huge)}, ("bytes, more than 2147483648",))


def with_a_grid(content: Fields) -> None:
    """Somebody else's graph, whose patches are not square: twice as many as squares would be."""
    content["foreign"] = {
        "file": "theirs.onnx", "sha256": "b" * 64, "producer": "pytorch", "opset": 17, "form": "MatMul", "prefix": 1,
        "grid": [1, 4], "given": [], "outputs": ["out"],
    }  # fmt: skip


OWN = {"logits": (3,), "a/map": (1, 2, 4)}
"""Outputs that are a model's own, and the shape of an image's share of each."""


def own_arrays() -> dict[str, np.ndarray]:
    """The golden sample of a model with these outputs and no embedding."""
    rng = np.random.default_rng(1)
    kept = {name: array for name, array in arrays().items() if name in ("input", "flags", "flag_distance")}
    return kept | {
        f"output{number}": (rng.standard_normal((N, *shape)) * 10 ** (2 * number - 3)).astype(np.float32)
        for number, shape in enumerate(OWN.values())
    }


def with_own_outputs(content: Fields) -> None:
    content["outputs"] = [{"name": name, "dtype": "float32", "shape": ["batch", *shape]} for name, shape in OWN.items()]
    content["options"]["outputs"] = list(OWN)
    content["parity"]["limits"]["max_relative"] = 1e-4


def as_float32(content: Fields) -> None:
    content["inputs"] = [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, HEIGHT, WIDTH]}]
    content["options"]["input"] = content["preprocessing"]["dtype"] = "float32"
    content["preprocessing"] |= {"layout": "NCHW", "normalized_by": "caller"}


# --- comparisons


def outputs() -> dict[str, np.ndarray]:
    """Outputs by name, those of the base's golden sample."""
    named = arrays()
    named["artifact_mask"] = named.pop("flags")
    return {name: named[name] for name in EVERYTHING}


def comparison(
    name: str,
    change: Callable[[dict[str, np.ndarray]], object] = lambda _: None,
    near: tuple[tuple[int, int, int], ...] = (),
    **limits: float | bool | None,
) -> Case:
    """Outputs after a change; `near` are the flags whose norms are inside the margin of their thresholds."""
    got = outputs()
    change(got)
    expected = arrays()
    for place in near:
        expected["flag_distance"][place] = MARGIN / 2
    content = npz(expected)
    edit = lambda fields: fields["parity"]["limits"].update(limits)  # noqa: E731
    over = {"got.npz": npz(got), GOLDEN: content, MANIFEST: edited(edit, golden=content)}
    return Case(f"compare/{name}", "compare", over, None)


def own_comparison(name: str, output: int, by: float, near: tuple[tuple[int, ...], ...]) -> Case:
    """Outputs that are the model's own, one number of sample 1 moved by `by`."""
    expected = own_arrays()
    got = {one: expected[f"output{number}"].copy() for number, one in enumerate(OWN)}
    got[list(OWN)[output]][1].flat[0] += np.float32(by)
    for place in near:
        expected["flag_distance"][place] = MARGIN / 2
    content = npz(expected)
    over = {"got.npz": npz(got), GOLDEN: content, MANIFEST: edited(with_own_outputs, golden=content)}
    return Case(f"compare/own-{name}", "compare", over, None)


def move(name: str, place: tuple[int, ...], by: float) -> Callable[[dict[str, np.ndarray]], object]:
    def change(got: dict[str, np.ndarray]) -> None:
        got[name][place] += np.float32(by)

    return change


def several(*changes: Callable[[dict[str, np.ndarray]], object]) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda got: [change(got) for change in changes]


def flip(*places: tuple[int, int, int]) -> Callable[[dict[str, np.ndarray]], object]:
    def change(got: dict[str, np.ndarray]) -> None:
        for place in places:
            got["artifact_mask"][place] ^= True

    return change


def only(*names: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda got: [got.pop(name) for name in EVERYTHING if name not in names]


def comparisons() -> Iterator[Case]:
    yield comparison("equal")
    yield comparison("embedding-alone", only("embedding"))
    yield comparison("inside-max-abs", move("embedding", (3, 5), 2**-14))
    yield comparison("over-max-abs", move("patch_tokens", (3, 1, 5), 2**-12))
    yield comparison("over-max-abs-where-normalized", move("embedding", (0, 0), 2**-14), normalized=True)
    yield comparison("inside-the-cosine", move("embedding", (2, 1), 0.01), max_abs=None, min_cosine=0.999)
    yield comparison("under-the-cosine", move("patch_tokens", (2, 1, 1), 1), max_abs=None, min_cosine=0.999)
    yield comparison("no-limits", move("embedding", (2, 1), 1), max_abs=None, flag_margin=None)
    yield comparison("nan", move("embedding", (1, 1), np.nan))
    yield comparison("infinity", move("patch_tokens", (1, 1, 1), np.inf))
    yield comparison("nan-norm", move("artifact_norm", (1, 1, 1), np.nan))
    yield comparison("zero-vector", lambda got: got.update(embedding=np.zeros((N, C), np.float32)), min_cosine=0.5)
    yield comparison("norm-off", move("artifact_norm", (1, 1, 1), 0.01))
    yield comparison("flag-far-from-its-threshold", flip((1, 0, 1)))
    yield comparison("flag-at-its-threshold", flip((1, 0, 1)), near=((1, 0, 1),))
    later = several(flip((1, 0, 1), (1, 1, 1)), move("artifact_norm", (1, 1, 1), 1))
    yield comparison("what-follows-a-borderline-flag", later, near=((1, 0, 1),))
    before = several(flip((1, 1, 1)), move("artifact_norm", (1, 0, 1), 1), move("embedding", (1, 1), 1))
    yield comparison("what-goes-before-a-borderline-flag", before, near=((1, 1, 1),))
    places = tuple((sample, 0, 1) for sample in range(N))
    off = several(flip(*places), *(move("embedding", (sample, 0), 1 + sample) for sample in (1, 3)))
    yield comparison("half-of-the-samples-left-out", off, near=places)
    all_off = several(flip(*places), *(move("embedding", (sample, 0), 1 + sample) for sample in range(N)))
    yield comparison("more-than-half-off", all_off, near=places)
    unclear = several(only("embedding"), *(move("embedding", (sample, 0), 1 + sample) for sample in (0, 2)))
    yield comparison("unclear-without-flags", unclear, near=((0, 0, 0), (1, 0, 0), (2, 1, 1)))
    yield comparison("off-without-flags", unclear, near=((0, 0, 0),))
    for name, place, by, near in (
        ("equal", 0, 0.0, ()),
        ("inside-the-limit", 1, 1e-6, ()),
        ("over-the-limit", 1, 1e-3, ()),
        ("over-the-limit-of-small-numbers", 0, 1e-6, ()),
        ("nan", 0, np.nan, ()),
        ("borderline", 1, 1e-3, ((1, 0, 1),)),
    ):
        yield own_comparison(name, place, by, near)
    yield comparison("no-outputs", only())
    yield comparison("one-sample", lambda got: got.update(embedding=got["embedding"][:1]))
    yield comparison("one-column", lambda got: got.update(patch_tokens=got["patch_tokens"][..., :1]))


# --- what is written


def write(folder: Path) -> None:
    """Write everything into `folder`, which must not be there."""
    base = folder / "base"
    base.mkdir(parents=True)
    for name, content in {**BASE, MANIFEST: edited()}.items():
        (base / name).write_bytes(content)
    listed = []
    cases = [*good_manifests(), *not_json(), *versions(), *own_hash(), *wrong_fields(), *files(), *golden_samples()]
    for case in [*cases, *comparisons()]:
        for name, content in case.files.items():
            if content is not None:
                path = folder / case.name / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        removed = [name for name, content in case.files.items() if content is None]
        entry: dict[str, Any] = {"name": case.name, "call": case.call, "remove": removed, "says": case.says}
        if case.call == "compare":
            entry["parity"] = found_parity(folder / case.name)
        listed.append(entry)
    (folder / "npy").mkdir()
    for name, array in arrays().items():
        (folder / "npy" / f"{name}.npy").write_bytes(npy(array[:1]))
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in listed)
    (folder / "contract.json").write_text(f"[\n{lines}\n]\n")


def found_parity(case: Path) -> Fields:
    """The figures and verdict of Python's comparison for a case."""
    model = case / MODEL
    model.write_bytes(BASE[MODEL])  # it must be there, to be found
    manifest = read_manifest(model)
    with np.load(case / "got.npz") as got:
        parity = compare({name: got[name] for name in got.files}, read_golden(model, manifest), manifest.parity.limits)
    model.unlink()

    def number(value: float) -> float | str:
        return value if np.isfinite(value) else str(value)

    return {
        "max_abs": number(parity.max_abs),
        "min_cosine": number(parity.min_cosine),
        "norm_relative": number(parity.norm_relative),
        "max_relative": number(parity.max_relative),
        "flags_checked": parity.flags_checked,
        "flags_differing": parity.flags_differing,
        "borderline": parity.borderline,
        "left_out": parity.left_out,
        "failures": parity.failures,
    }


if __name__ == "__main__":
    for old in (CASES / name for name in ("base", "manifest", "files", "golden", "compare", "npy")):
        shutil.rmtree(old, ignore_errors=True)
    write(CASES)
