from pathlib import Path

import foreign_models
import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Gives a small model of transformers as an ONNX file: family, attention, how."""
    folder: Path = tmp_path_factory.mktemp("foreign")

    def make(family: str, attention: str, how: str) -> Path:
        return foreign_models.export(folder, family, attention, how)

    return make
