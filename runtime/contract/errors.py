"""Every error that this project raises on purpose.

    ItaeError                     exit code 2 unless said otherwise
    ├── UsageError                an option has a value that means nothing here
    ├── InputError                an image, array or file that a user gave can't be used
    ├── ManifestError             a model, its manifest or its golden sample is missing, altered or too new
    ├── WeightsError              a checkpoint can't be loaded, or isn't the model that was asked for
    ├── SurgeryError              a graph hasn't the shape that a rewrite needs
    ├── BackendError              this machine lacks something: a library, a driver, a provider
    ├── OutputFileError           the result can't be written where it was asked for
    └── CheckError                something was made and found wrong; exit code 1
        ├── BuildError            TensorRT gave no engine
        ├── FusionError           kernels of attention are not as `--require-fusion` or `--unfused` asks
        └── ParityError           two computations of the same result disagree

A message says what was wrong, with which input, and what to do. The command line prints it as one line.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pydantic

_STEERING = ("Cc", "Cf", "Cs")
"""Unicode's categories of invisible characters: controls, formats (some turn the direction), lone surrogates."""
_JOINERS = "\u200c\u200d"
"""Formats that only shape their neighbours, in families of emoji and in Persian and Indian words."""


class ItaeError(Exception):
    """Base of all errors below; `exit_code` is the exit code of the command line."""

    exit_code: int = 2


class UsageError(ItaeError):
    """An option has a value that means nothing here."""


class InputError(ItaeError):
    """An image, array or file that a user gave can't be used."""


class ManifestError(ItaeError):
    """A model, its manifest or its golden sample is missing, altered or too new."""


class WeightsError(ItaeError):
    """A checkpoint can't be loaded, or isn't the model that was asked for."""


class SurgeryError(ItaeError):
    """A graph hasn't the shape that a rewrite needs."""


class BackendError(ItaeError):
    """This machine lacks something: a library, a driver, a provider."""


class OutputFileError(ItaeError):
    """The result can't be written where it was asked for."""


class CheckError(ItaeError):
    """Something was made and found wrong."""

    exit_code = 1


class BuildError(CheckError):
    """TensorRT gave no engine."""


class FusionError(CheckError):
    """The kernels of attention are not as `--require-fusion` or `--unfused` asks."""


class ParityError(CheckError):
    """Two computations of the same result disagree."""


def one_line(error: BaseException) -> str:
    """The text of an error on one line, as the command line prints it."""
    return plain(str(error)) or type(error).__name__


def first_fault(error: pydantic.ValidationError) -> str:
    """The first field that is wrong, and why, on one line."""
    fault = error.errors()[0]
    return plain(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")


def plain(text: str) -> str:
    """The text on one line of a terminal: names of files may hold line breaks and characters that steer a terminal."""
    return "".join(map(_shown, " ".join(text.split())))


def _shown(one: str) -> str:
    if unicodedata.category(one) not in _STEERING or one in _JOINERS:
        return one
    return one.encode("unicode_escape").decode()
