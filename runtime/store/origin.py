"""The origin of a store's rows, and their identity: the fields of the origin that must agree within one store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.contract import format1
from runtime.contract.manifest import Manifest
from runtime.images.formats import SIXTEEN_BIT

_DESCRIPTIVE = ("model", "options", "weights")
"""Fields of an origin that are for people: a file's name, and what is in the model's bytes."""
CONSTANT_PREPROCESSING = ("exif_orientation", "color", "alpha", "gray16", "resize_order")
"""Fields of the preprocessing that have one value in each manifest format, in other words in each."""
_LATER_PREPROCESSING = {"fit": "crop"}
"""Fields that came later, with the value that there was before: stores of before have none."""
_USUAL = {"sixteen_bit": "full", "compute": "the model's own", "draft": False}
"""Values of fields that are left out of an origin where they have them."""
_SHOWN = 3
"""Number of differences that a message names."""


def origin_of(
    manifest: Manifest, provider: str, sixteen_bit: str = "full", compute: str | None = None, *, draft: bool = False
) -> dict[str, Any]:
    """Return what makes the embeddings of a model, as JSON for `_store.json`.

    Args:
        manifest: of the model.
        provider: what runs the model: `cpu`, `cuda`, `openvino`, `tensorrt`, `tensorrt-rtx`.
        sixteen_bit: white of 16-bit images, one of `runtime.images.formats.SIXTEEN_BIT`.
        compute: what the model computes in; None for the precision of its file, which the SHA-256 covers.
        draft: whether large JPEGs were scaled while they were decoded.
    """
    weights = manifest.files.external_data
    how, later = manifest.preprocessing.model_dump(mode="json"), _LATER_PREPROCESSING.items()
    return {
        "model": manifest.files.model.name,
        "model_sha256": manifest.files.model.sha256,
        **({} if weights is None else {"external_data_sha256": weights.sha256}),
        "options": manifest.options.model_dump(mode="json"),
        "weights": manifest.model.weights.model_dump(mode="json"),
        "preprocessing": {name: value for name, value in how.items() if (name, value) not in later},
        "provider": provider,
        **({} if compute in (None, manifest.options.precision) else {"compute": compute}),
        **({} if sixteen_bit == "full" else {"sixteen_bit": sixteen_bit}),
        **({"draft": True} if draft else {}),
    }


def identity(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that change the embeddings: the model's content and what acts outside of it.

    An option of the export is in the model's bytes, so the SHA-256 covers it. A field that this version does not know
    counts. A field that is added later must be left out of the origin where it has the value that it always had.
    """
    fields = {name: value for name, value in origin.items() if name not in _DESCRIPTIVE}
    if isinstance(how := fields.get("preprocessing"), Mapping):
        fields["preprocessing"] = {name: value for name, value in how.items() if name not in CONSTANT_PREPROCESSING}
        if fields["preprocessing"].get("resize_filter") != "bilinear":  # bicubic has other words in format 1
            fields["preprocessing"].pop("resize_filter", None)
    return fields


def options_of(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the export in the words of today; empty if they are not known.

    An origin of manifest format 1 has `itae` in the place of `method`. One of another program may hold anything.
    """
    found = origin.get("options")
    options = dict(found) if isinstance(found, Mapping) else {}
    if "itae" in options and isinstance(itae := options["itae"], dict | None):
        del options["itae"]
        options["method"] = format1.method(itae)
    return options


def random_weights(origin: Mapping[str, Any]) -> str | None:
    """Return the source of random weights, such as `random:0`; None if they are others, or not known."""
    weights = origin.get("weights")
    if isinstance(weights, Mapping):
        return str(weights.get("source")) if weights.get("kind") == "random" else None
    source = options_of(origin).get("weights")  # as in a store of manifest format 1
    return source if isinstance(source, str) and format1.weights_kind(source) == "random" else None


def sixteen_bit_of(origin: Mapping[str, Any]) -> str:
    """Return how the images of 16 bits were read, one of `runtime.images.formats.SIXTEEN_BIT`."""
    found = origin.get("sixteen_bit")
    return str(found) if found in SIXTEEN_BIT else "full"


def compute_of(origin: Mapping[str, Any]) -> str | None:
    """Return what the model computed in; None for the precision of its file."""
    found = origin.get("compute")
    return found if isinstance(found, str) else None


def fingerprint(fields: Mapping[str, Any]) -> str:
    """SHA-256 of an origin or an identity."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return in words how the identities of two origins differ; empty if they are equal.

    If the models differ, options that differ are named too: `options.precision is fp32 there, fp16 here`.
    """
    found = list(_differences(identity(there), identity(here)))
    old, new = there.get("options"), here.get("options")
    if there.get("model_sha256") != here.get("model_sha256") and isinstance(old, Mapping) and isinstance(new, Mapping):
        both = old.keys() & new.keys()
        found += _differences({name: old[name] for name in both}, {name: new[name] for name in both}, "options.")
    return "; ".join(found[:_SHOWN])


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        old, new = (fields.get(name, _USUAL.get(prefix + name)) for fields in (there, here))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} is {_short(old)} there, {_short(new)} here"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
