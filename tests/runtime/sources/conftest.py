"""Small images that can be recognised by their pixels."""

import io

import numpy as np
import pytest
from PIL import Image


def picture(number: int) -> bytes:
    """A PNG of 8 x 8 pixels, all of colour (number, 2 number, 200)."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 2 * number, 200)).save(file, "PNG")
    return file.getvalue()


def number_of(image: Image.Image) -> int:
    """The number that a picture was made with."""
    pixels = np.asarray(image)
    assert pixels.shape == (8, 8, 3)
    assert (pixels == pixels[0, 0]).all()
    assert pixels[0, 0].tolist() == [pixels[0, 0, 0], 2 * pixels[0, 0, 0], 200]
    return int(pixels[0, 0, 0])


@pytest.fixture(name="picture")
def _picture():
    return picture


@pytest.fixture(name="number_of")
def _number_of():
    return number_of
