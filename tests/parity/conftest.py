"""The small models, each traced once for all tests."""

import pytest
from tiny_dinov2 import MODELS, TinyDinov2, make_tiny


@pytest.fixture(scope="session", params=MODELS)
def tiny(request, tmp_path_factory) -> TinyDinov2:
    arch, size = MODELS[request.param]
    return make_tiny(arch, size, tmp_path_factory.mktemp(request.param))
