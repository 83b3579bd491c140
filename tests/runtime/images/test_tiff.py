"""TIFFs of many bands, in each layout of their bytes."""

import struct

import numpy as np
import pytest
from tiffs import written

from runtime.contract.errors import InputError
from runtime.images.decode import Note, decode_image

BANDS = np.random.default_rng(1).integers(0, 256, (50, 37, 8), np.uint8)


def decoded(data: bytes) -> tuple[np.ndarray, list[Note]]:
    notes: list[Note] = []
    return np.asarray(decode_image(data, on_note=notes.append)), notes


def sixteen(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint16) * 257


LAYOUTS = {
    "plain": {},
    "big-endian": {"order": ">"},
    "deflate": {"deflate": True},
    "predictor": {"deflate": True, "predictor": 2},
    "big-endian, predictor": {"order": ">", "deflate": True, "predictor": 2},
    "planes": {"planar": True},
    "planes, predictor": {"planar": True, "deflate": True, "predictor": 2},
    "tiles": {"tile": 16},
    "tiles, predictor": {"tile": 16, "deflate": True, "predictor": 2},
    "tiles, planes": {"tile": 32, "planar": True},
    "offsets of 8 bytes": {"big": True},
    "one strip": {"rows": 50},
}


@pytest.mark.parametrize("wide", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bands", [4, 5, 6, 8])
def test_rgb_with_further_bands_shows_its_first_three(bands, layout, wide) -> None:
    values = sixteen(BANDS[..., :bands]) if wide else BANDS[..., :bands]
    got, notes = decoded(written(values, 2, (0,) * (bands - 3), **LAYOUTS[layout]))
    np.testing.assert_array_equal(got, BANDS[..., :3])
    assert notes == []


@pytest.mark.parametrize("wide", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_bands_that_call_themselves_grey_are_rgb_with_a_note(layout, wide) -> None:
    values = sixteen(BANDS[..., :3]) if wide else BANDS[..., :3]
    got, notes = decoded(written(values, 1, (0, 0), **LAYOUTS[layout]))
    np.testing.assert_array_equal(got, BANDS[..., :3])
    assert notes == [Note.THREE_BANDS]


@pytest.mark.parametrize(("photometric", "extra"), [(2, (2, 0, 0)), (2, (0, 2)), (1, (0, 0, 2))], ids=str)
def test_alpha_among_further_bands_is_blended_over_white(photometric, extra) -> None:
    bands = len(extra) + (3 if photometric == 2 else 1)
    values = BANDS[..., :bands].copy()
    alpha = bands - len(extra) + extra.index(2)
    values[..., alpha] = np.where(np.arange(37) < 20, 0, 255)
    got, _ = decoded(written(values, photometric, extra))
    assert (got[:, :20] == 255).all()
    np.testing.assert_array_equal(got[:, 20:], values[:, 20:, :3])


@pytest.mark.parametrize("wide", [False, True], ids=["8 bits", "16 bits"])
def test_grey_with_one_further_band_is_grey(wide) -> None:
    values = sixteen(BANDS[..., :2]) if wide else BANDS[..., :2]
    got, notes = decoded(written(values, 1, (0,)))
    np.testing.assert_array_equal(got, BANDS[..., :1].repeat(3, axis=2))
    assert notes == []


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_tiff_that_says_12_bits_is_scaled_by_them_without_a_note(orientation) -> None:
    wanted = BANDS[:, :36, 0]
    values = np.round(wanted * (4095 / 255)).astype(np.uint16)
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    data = written(packed.reshape(50, 54, 1), 1, orientation=orientation, rows=50)
    data = data.replace(struct.pack("<HHII", 256, 4, 1, 54), struct.pack("<HHII", 256, 4, 1, 36))
    data = data.replace(struct.pack("<HHII", 258, 3, 1, 8), struct.pack("<HHII", 258, 3, 1, 12))
    got, notes = decoded(data)
    np.testing.assert_array_equal(got[..., 0], wanted if orientation == 1 else np.rot90(wanted, -1))
    assert notes == []


def test_a_turned_tiff_of_many_bands_is_put_upright() -> None:
    got, _ = decoded(written(BANDS[..., :7], 2, (0,) * 4, orientation=6))
    np.testing.assert_array_equal(got, np.rot90(BANDS[..., :3], -1))


REFUSED = {
    "five grey bands": (
        written(BANDS[..., :5], 1, (0,) * 4),
        r"is a TIFF of 5 bands \(grey and 4 more\) of 8-bit whole",
    ),
    "four grey bands": (written(BANDS[..., :4], 1, (0,) * 3), "does not say which are red, green and blue"),
    "five grey bands in planes": (written(BANDS[..., :5], 1, (0,) * 4, planar=True), "does not say which are red"),
    "white is zero": (written(BANDS[..., :3], 0, (0, 0)), r"3 bands \(grey and 2 more\)"),
    "float": (
        written(BANDS[..., :3] / np.float32(255), 2),
        r"3 bands \(RGB\) of 32-bit floating-point .* range is not",
    ),
    "double grey": (written(BANDS[..., :1] / 255, 1), r"1 band \(grey\) of 64-bit floating-point numbers"),
    "signed": (
        written(BANDS[..., :3].astype(np.int16), 2),
        r"3 bands \(RGB\) of 16-bit signed numbers, whose range is not known",
    ),
    "32 bits": (written(BANDS[..., :3].astype(np.uint32), 2), r"32-bit whole numbers, whose range is not known"),
    "signed grey": (written(BANDS[..., :1].astype(np.int16), 1), r"1 band \(grey\) of 16-bit signed numbers"),
    "CMYK and more": (written(BANDS[..., :7], 5, (0,) * 3), r"7 bands \(CMYK and 3 more\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_sound_tiff_that_is_no_picture_is_called_what_it_is(name) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        decode_image(data)


@pytest.mark.parametrize("bands", [5, 8])
def test_a_truncated_tiff_of_many_bands_is_refused(bands) -> None:
    data = written(BANDS[..., :bands], 2, (0,) * (bands - 3))
    broken = bytearray(data)
    where = data.rindex(struct.pack("<HHI", 273, 4, 4)) + 8  # offsets of the strips lie elsewhere
    (table,) = struct.unpack("<I", data[where : where + 4])
    broken[table : table + 4] = struct.pack("<I", len(data) - 10)
    with pytest.raises(InputError):
        decode_image(bytes(broken))


def test_bands_that_take_too_much_memory_are_refused() -> None:
    data = bytearray(written(BANDS[..., :8], 2, (0,) * 5))
    for tag in (256, 257):
        where = data.rindex(struct.pack("<HHI", tag, 4, 1)) + 8
        data[where : where + 4] = struct.pack("<I", 10_000)
    with pytest.raises(InputError, match="has 800,000,000 bytes of 8 bands, more than 715,827,880"):
        decode_image(bytes(data))
