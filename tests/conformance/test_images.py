"""Python's results on the pictures of the cases; C++'s are in runtime/cpp/tests/images/conformance_test.cpp."""

from __future__ import annotations

import json
import warnings
from operator import itemgetter
from typing import Any

import pytest

from tests.conformance import make_images

IMAGES = make_images.CASES / "images"
LISTED: dict[str, Any] = json.loads((make_images.CASES / "images.json").read_text())


@pytest.mark.parametrize("case", LISTED["pictures"], ids=itemgetter("file"))
def test_python_gives_the_pixels_of(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of oddities
        found = make_images.outcome(case["file"], (IMAGES / case["file"]).read_bytes())
    assert ("refused" in found) == ("refused" in case), found
    if "refused" not in case:
        assert found == case


def test_all_pictures_are_listed_with_the_ways_of_the_script():
    assert [case["file"] for case in LISTED["pictures"]] == sorted(path.name for path in IMAGES.iterdir())
    ways = [way.model_dump(mode="json") for way in make_images.ways()]
    for described, way in zip(LISTED["preprocessing"], ways, strict=True):
        assert described == {key: way[key] for key in described}
    assert {name for name, _ in make_images.pictures()} <= {case["file"] for case in LISTED["pictures"]}


def test_both_outcomes_are_there():
    refused = ["refused" in case for case in LISTED["pictures"]]
    assert 10 < sum(refused) < len(refused) / 2
