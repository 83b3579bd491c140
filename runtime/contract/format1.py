"""Manifests of format 1, the one before: their own hash, and their fields as format 2 has them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

_PURPOSES = {"as exported": "exported", "the same surgery in fp32": "fp32", "another threshold, in fp32": "threshold"}
_RANDOM = re.compile(r"random(:\d+)?")


class Damaged(Exception):  # noqa: N818  # `manifest` makes a ManifestError of it
    """The fields are not those of format 1."""


def own_hash(fields: dict[str, Any]) -> str | None:
    """SHA-256 of the fields less `manifest_sha256`, as JSON with sorted keys and without spaces.

    Returns None if they can't be written so: half of a surrogate pair, a number that is not finite, or deep nesting.
    """
    rest = {key: value for key, value in fields.items() if key != "manifest_sha256"}
    try:
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return hashlib.sha256(text).hexdigest()


def weights_kind(source: str) -> str:
    """Returns `model.weights.kind` for a `weight_source`."""
    return "random" if _RANDOM.fullmatch(source) else "hub" if source.startswith("hf:") else "path"


def method(itae: dict[str, Any] | None) -> dict[str, Any]:
    """Returns `options.method` for `options.itae`; raises TypeError if that is no object."""
    return {"name": "none"} if itae is None else {"name": "itae", **itae}


def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of format 1 as those of format 2.

    Raises:
        Damaged: a field that differs between the two is missing, or is no object.
    """
    try:
        options, model = dict(fields["options"]), dict(fields["model"])
        options["method"] = method(options.pop("itae"))
        source = model.pop("weight_source")
        if not isinstance(source, str):
            raise Damaged("model.weight_source is no text")
        model["weights"] = {
            "kind": weights_kind(source), "source": source, "revision": model.pop("revision"),
            "sha256": model.pop("weights_sha256"),
        }  # fmt: skip
        # The words of format 1 had one value each.
        preprocessing = {
            **fields["preprocessing"], "alpha": "white", "gray16": "div257", "resize_filter": "bicubic",
            "resize_order": "pillow13",
        }  # fmt: skip
        checks = [{**one, "purpose": _PURPOSES[one["purpose"]]} for one in fields["parity"]["checks"]]
        fusion = fields.get("fusion")
        if fusion is not None:
            fusion = {**fusion, "reasons": [one if one is None else "precision" for one in fusion["reasons"]]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"a field of format 1 is missing or misshapen ({error})") from error
    return {
        **fields,
        "format_version": 2,
        "options": options,
        "model": model,
        "preprocessing": preprocessing,
        "parity": {**fields["parity"], "checks": checks},
        "fusion": fusion,
    }
