"""A golden sample is refused unless it is the manifest's, complete, and of the model's shapes."""

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import reseal

from runtime.contract import golden as golden_module
from runtime.contract.errors import ManifestError, one_line
from runtime.contract.golden import Golden, golden_bytes, read_golden
from runtime.contract.manifest import parity_path, read_manifest, record_file

EVERYTHING = ("embedding", "patch_tokens", "artifact_mask", "artifact_norm")


def read(model: Path) -> Golden:
    return read_golden(model, read_manifest(model))


def refused(model: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read(model)
    return one_line(caught.value)


def replace(model: Path, data: bytes) -> None:
    """Put another file in the golden sample's place, and forge the manifest to fit."""
    parity_path(model).write_bytes(data)
    record = record_file(parity_path(model)).model_dump()
    reseal(model, lambda fields: fields["files"].update(parity=record))


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def arrays_of(model: Path) -> dict[str, np.ndarray]:
    with np.load(parity_path(model)) as file:
        return dict(file)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("outputs", [("embedding",), EVERYTHING], ids=["embedding", "everything"])
def test_a_golden_sample_survives_writing_and_reading(tmp_path, make_model, outputs, dtype):
    model = make_model(tmp_path / "m", outputs=outputs, dtype=dtype)
    golden = read(model)
    assert set(golden.outputs()) == {*outputs, "artifact_mask"}  # the flags are always there
    assert golden.input.dtype == dtype
    again = golden_bytes(golden)
    assert again == parity_path(model).read_bytes() == golden_bytes(golden)
    for field in dataclasses.fields(Golden):
        if field.name == "own":
            continue
        value = getattr(golden, field.name)
        stored = arrays_of(model).get(field.name)
        assert (value is None) == (stored is None)
        assert value is None or np.array_equal(value, stored)


def test_a_missing_golden_sample_is_refused(tiny):
    parity_path(tiny).unlink()
    assert "can't read" in refused(tiny)
    assert refused(tiny).endswith("No such file or directory; copy it along under that name")


def test_the_golden_sample_of_another_model_is_refused(tmp_path, make_model):
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "other", dtype="uint8")
    parity_path(one).write_bytes(parity_path(other).read_bytes())
    assert "it was swapped, altered or only partly written" in refused(one)


def test_an_oversized_golden_sample_is_refused_before_it_is_read(tiny, monkeypatch):
    monkeypatch.setattr(golden_module, "MAX_GOLDEN_BYTES", parity_path(tiny).stat().st_size - 1)
    monkeypatch.setattr(golden_module, "read_checked", lambda *_: pytest.fail("it was read"))
    assert "more than" in refused(tiny)


def test_a_golden_sample_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tiny, monkeypatch):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input.npy", bytes(1 << 20))
    replace(tiny, bomb.getvalue())
    monkeypatch.setattr(golden_module, "MAX_GOLDEN_BYTES", 1 << 19)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was loaded"))
    assert f"it unpacks to {1 << 20} bytes, more than {1 << 19}" in refused(tiny)


def header(text: str) -> bytes:
    """An npz whose only array is a header."""
    line = text.encode().ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("input.npy", b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line)
    return buffer.getvalue()


def without_arrays() -> bytes:
    """An npz whose members have the right names and are not in npy format."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("input", "embedding", "flags", "flag_distance"):
            archive.writestr(f"{name}.npy", b"rubbish")
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def patched(offset: int, value: int) -> bytes:
    """An npz with one byte of the central directory's first entry set."""
    data = bytearray(npz(input=np.zeros(3, np.float32)))
    data[data.index(b"PK\x01\x02") + offset] = value
    return bytes(data)


HOSTILE = {
    "empty": b"",
    "words": b"not an npz",
    "pickle": b"\x80\x04N.",
    "one array": npy(),
    "no arrays": npz(),
    "members that are no arrays": without_arrays(),
    "objects": npz(input=np.array([{}], object)),
    "a huge shape": header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,)}"),
    "a shape beyond int64": header("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000000000,)}"),
    "a negative shape": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
    "no such dtype": header("{'descr': '<q9', 'fortran_order': False, 'shape': (1,)}"),
    "an open bracket": header("(((("),
    "encrypted": patched(8, 1),
    "unknown compression": patched(10, 99),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_npz_of_arrays_is_refused_though_the_hash_fits(tiny, case):
    replace(tiny, HOSTILE[case])
    assert "is not a golden sample (" in refused(tiny)


@pytest.mark.parametrize("name", ["input", "embedding", "flags", "flag_distance"])
def test_a_golden_sample_without_a_needed_array_is_refused(tiny, name):
    arrays = arrays_of(tiny)
    del arrays[name]
    replace(tiny, npz(**arrays))
    assert f"'{name} is not a file in the archive'" in refused(tiny)


@pytest.mark.parametrize("name", ["patch_tokens", "artifact_norm"])
def test_a_golden_sample_without_an_output_of_the_model_is_refused(tmp_path, make_model, name):
    model = make_model(tmp_path / "m", outputs=EVERYTHING)
    arrays = arrays_of(model)
    del arrays[name]
    replace(model, npz(**arrays))
    assert f"holds no `{name}`, which the model outputs" in refused(model)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one column less": lambda array: array[..., :-1],
    "one sample less": lambda array: array[:-1],
    "a dimension more": lambda array: array[None],
    "none": lambda array: np.zeros((), array.dtype),
    "float64": lambda array: array.astype(np.float64),
    "big-endian": lambda array: array.astype(">f8"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["input", "embedding", "flags", "flag_distance", "patch_tokens", "artifact_norm"])
def test_an_array_of_another_shape_or_dtype_is_named(tmp_path, make_model, name, change):
    model = make_model(tmp_path / "m", outputs=EVERYTHING)
    arrays = arrays_of(model)
    arrays[name] = CHANGES[change](arrays[name])
    replace(model, npz(**arrays))
    # With a sample less of `input`, it is the next array that has one too many.
    named = "embedding" if (name, change) == ("input", "one sample less") else name
    assert f"`{named}` is " in refused(model)


def test_a_golden_sample_without_samples_is_refused(tiny):
    replace(tiny, npz(**{name: array[:0] for name, array in arrays_of(tiny).items()}))
    assert "holds no sample" in refused(tiny)


fuzzing = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
"""The file is written anew in each example, so that a fixture may be shared between them."""


@pytest.fixture
def pristine(tiny) -> bytes:
    return parity_path(tiny).read_bytes()


@fuzzing
@given(at=st.integers(0, 10**6), xor=st.integers(1, 255))
def test_a_golden_sample_with_any_byte_changed_is_refused(tiny, pristine, at, xor):
    data = bytearray(pristine)
    data[at % len(data)] ^= xor
    parity_path(tiny).write_bytes(data)
    assert "has not the SHA-256" in refused(tiny)


@fuzzing
@given(at=st.integers(0, 10**6))
def test_a_truncated_golden_sample_is_refused(tiny, pristine, at):
    parity_path(tiny).write_bytes(pristine[: at % len(pristine)])
    assert f"not the {len(pristine)} that" in refused(tiny)


@fuzzing
@given(at=st.integers(0, 10**6), xor=st.integers(1, 255))
def test_a_forged_golden_sample_gives_a_sample_or_one_line_and_nothing_else(tiny, pristine, at, xor):
    data = bytearray(pristine)
    at = -1 - at % 1500 if at % 2 else at % len(data)  # half of them in the directory at the end
    data[at] ^= xor
    replace(tiny, bytes(data))
    golden = read_or_none(tiny)
    assert golden is None or golden.embedding.shape == (4, read_manifest(tiny).model.width)


def read_or_none(model: Path) -> Golden | None:
    """The sample, or None where it is refused; any other error is a failure."""
    try:
        return read(model)
    except ManifestError:
        return None


def test_a_golden_sample_that_is_swapped_after_its_check_is_not_read(tiny, monkeypatch):
    path = parity_path(tiny)
    expected = read_golden(tiny, read_manifest(tiny)).embedding
    real = golden_module.read_checked

    def swap(*arguments):
        content = real(*arguments)
        path.write_bytes(b"rubbish")
        return content

    monkeypatch.setattr(golden_module, "read_checked", swap)
    np.testing.assert_array_equal(read_golden(tiny, read_manifest(tiny)).embedding, expected)
    assert path.read_bytes() == b"rubbish"
