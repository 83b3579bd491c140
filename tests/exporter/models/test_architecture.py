"""Architectures as data."""

import pytest

from exporter.models.architecture import ARCHITECTURES, Architecture


@pytest.mark.parametrize("arch", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_position_embeddings_are_resized_as_in_metas_models(arch):
    assert arch.resizes_position == ("antialiased" if arch.name.endswith("_reg") else "offset")


@pytest.mark.parametrize(("registers", "expected"), [(0, "offset"), (4, "antialiased")])
def test_a_backbone_of_ones_own_resizes_as_its_registers_say_or_as_it_is_told(registers, expected):
    own = Architecture("own", width=12, heads=3, depth=2, registers=registers)
    assert own.resizes_position == expected
    for position in ("offset", "antialiased"):
        assert Architecture("own", 12, 3, 2, registers, position=position).resizes_position == position
