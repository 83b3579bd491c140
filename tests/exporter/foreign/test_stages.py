"""A graph run layer by layer, beside the whole graph with ITAE in numpy."""

from pathlib import Path

import numpy as np
import pytest

from exporter.foreign import replica
from exporter.foreign.opening import prepare
from exporter.foreign.request import ForeignSpec
from exporter.foreign.stages import SOURCES, Stages
from exporter.foreign.survey import feeds_for
from exporter.methods.itae.options import ItaeConfig
from exporter.steps import Progress

SMALL = sorted((Path(__file__).parents[2] / "data" / "foreign").glob("*.onnx"))
ITAE = ItaeConfig(source="key", threshold="ratio:1.05", side="high", attenuate="mean")


@pytest.mark.parametrize("source", SMALL, ids=lambda path: path.stem)
def test_a_part_of_the_graph_gives_what_the_whole_gives(source, tmp_path):
    prepared = prepare(ForeignSpec(source, tmp_path / "x.onnx"), tmp_path, Progress(quiet=True))
    one, stages = prepared.found, Stages(prepared)
    assert stages.goes_on
    pictures = replica.images_for(one, 0, one.image_size, 3).astype(np.float32)
    feeds = feeds_for(one, one.image_size, 3, pictures)
    last = stages.depth - 1
    whole = replica.replicate(one, prepared.probe, ITAE, prepared.prefix, feeds)
    plain = replica.replicate(one, prepared.probe, None, prepared.prefix, feeds)
    looked = stages.look(pictures, [0, last])
    np.testing.assert_allclose(looked.norms[:, last, SOURCES.index("key")], whole.norm[:, 0], rtol=1e-4)
    np.testing.assert_allclose(looked.embedding, plain.outputs[prepared.embedding], atol=1e-5)
    flags = whole.flags[:, 0]
    assert flags.any()
    want = whole.outputs[prepared.embedding]
    assert np.abs(want - looked.embedding).max() > 1e-4
    for tokens in (looked.tokens[last], None):
        got, (rows,) = stages.again(pictures, tokens, [last], flags, ITAE.attenuation)
        np.testing.assert_allclose(got, want, atol=1e-5)
        mixed = flags.any(axis=1) & ~flags.all(axis=1)
        assert not np.allclose(rows[mixed], looked.attention[mixed, last])
    other, _ = stages.again(pictures, looked.tokens[0], [0], flags, ITAE.attenuation, until=last)
    assert other.shape == looked.tokens[last].shape
    assert not np.allclose(other, looked.tokens[last])
