"""The header of a `.npy` file, read with distrust: nothing is unpickled, and little memory is taken."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from runtime.contract.errors import InputError, one_line


@dataclass(frozen=True)
class NpyHeader:
    """A matrix of float32 in a `.npy` file."""

    rows: int
    width: int
    is_fortran: bool
    """Whether the numbers lie column by column."""
    offset: int
    """Bytes before the first number."""

    @property
    def data_bytes(self) -> int:
        """Number of bytes that the numbers take."""
        return self.rows * self.width * 4


def read_npy_header(file: BinaryIO, path: Path) -> NpyHeader:
    """Read the header from the start of `file`, whose name is `path`.

    Raises:
        InputError: this is no .npy file of version 1.0, which numpy and others write, or it is no float32 matrix of at
            least one row and one column.
        OSError: the file can't be read.
    """
    try:
        major, minor = np.lib.format.read_magic(file)
        is_known = (major, minor) == (1, 0)  # the header of a later version may have gigabytes
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file) if is_known else ((), False, None)
    except OSError:
        raise
    except Exception as error:  # the header is Python, and a damaged one raises anything
        raise InputError(f"{path} is no .npy file ({one_line(error)})") from error
    if not is_known:
        raise InputError(f"{path} is of .npy version {major}.{minor}, expected 1.0")
    if len(shape) != 2 or dtype != np.dtype("<f4") or min(shape) < 1:
        raise InputError(f"{path} holds {dtype} of shape {shape}, expected float32 (n, C)")
    return NpyHeader(int(shape[0]), int(shape[1]), bool(is_fortran), file.tell())


def npy_header(rows: int, width: int) -> bytes:
    """The header of a float32 matrix (`rows`, `width`), row by row."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return file.getvalue()
