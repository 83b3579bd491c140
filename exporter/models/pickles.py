"""PyTorch's pickled files, read so that nothing in them runs.

`torch.load` runs with `weights_only`. Where a file holds more than tensors, such as an argparse Namespace of its
training, a stand-in takes the place of each class that torch does not know: it holds what it is given and does nothing.
No module of the file's choice is imported, and no function of it is called. A file that calls a function which is not
known to make mere data is refused, though the stand-in would have done nothing: it is more than a checkpoint.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from runtime.contract.errors import WeightsError

MAX_PICKLE_BYTES = 256 << 20
"""Size of the pickle in a zip file, without the tensors."""
MAX_LOOKED_AT = 1_000_000
"""Number of values of a pickle that are looked at to find the entry that is refused."""
_DATA_CALLS = re.compile(
    r"(argparse|types|pathlib(\._local)?|datetime|uuid|decimal|fractions|omegaconf(\.\w+)*)\.\w+"
    r"|collections\.(defaultdict|deque|Counter)|_codecs\.encode|functools\.partial|copyreg\._reconstructor"
    r"|builtins\.(list|dict|set|frozenset|complex|slice|range|bytearray|object)"
    r"|numpy\.(dtype|ndarray)|numpy\.(core|_core)\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)"
)
"""Calls by which a pickle makes values that are mere data."""
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Python 2's modules, whose names pickles keep using."""
SAVE_TENSORS = "in the program that made it, save the tensors alone: torch.save(model.state_dict(), 'weights.pth')"

SHARDED = (
    "one process's piece of a sharded model. Give a file with whole tensors, such as the teacher_checkpoint.pth "
    "that Meta's training writes to its folder eval"
)


class _StandInClass(type):
    """The class of stand-ins, which notices that a pickle calls one."""

    full_name: str
    calls: int
    container: type | None
    """List or dictionary, if the pickle fills its instances as one: PyTorch wants a real one there."""

    def __call__(cls, *args: object, **_: object) -> object:
        """Make a stand-in of the result, and count the call."""
        cls.calls += 1
        return _made(cls, args)


class StandIn(metaclass=_StandInClass):
    """A value whose class is not ours to import; it keeps what the pickle gives it."""

    full_name = ""
    calls = 0
    container = None
    held: list[object]

    def __new__(cls, *args: object) -> StandIn:
        """Make one without a call, as a pickle does."""
        return _made(cls, args)

    def __setstate__(self, state: object) -> None:
        """Keep the attributes."""
        self.held.append(state)

    def append(self, value: object) -> None:
        """Keep a value of what the pickle takes for a list."""
        type(self).container = list
        self.held.append(value)

    add = append

    def extend(self, values: Iterable[object]) -> None:
        """Keep values of what the pickle takes for a list."""
        type(self).container = list
        self.held.extend(values)

    def __setitem__(self, key: object, value: object) -> None:
        """Keep a value of what the pickle takes for a dictionary."""
        type(self).container = OrderedDict
        self.held.append(value)


def _made(cls: _StandInClass, args: tuple[object, ...]) -> StandIn:
    if cls.container is not None:
        return cast("StandIn", cls.container())
    one = object.__new__(cast("type[StandIn]", cls))
    one.held = list(args)
    return one


def _stand_in(full_name: str, container: type | None = None) -> _StandInClass:
    attributes = {"full_name": full_name, "calls": 0, "container": container}
    return _StandInClass(full_name.rpartition(".")[2] or "StandIn", (StandIn,), attributes)


class _Dict(dict[object, object]):
    """An OrderedDict of the pickle; PyTorch's state dicts have attributes."""

    def __setstate__(self, state: object) -> None:
        """Drop the attributes."""


class _Inspector(pickle._Unpickler):  # in Python: the one in C takes the memory that a damaged file asks for
    """Reads the structure of a pickle with a stand-in for every class, tensors included."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.stand_ins: dict[str, _StandInClass] = {}

    def find_class(self, module: str, name: str) -> type:
        """Give a stand-in, whatever is asked for."""
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        full_name = f"{_RENAMED.get(module, module)}.{name}"
        return self.stand_ins.setdefault(full_name, _stand_in(full_name))

    def persistent_load(self, pid: object) -> None:
        """Leave the numbers of a tensor where they are."""


def read_pickle(path: Path) -> object:
    """The content of a file of `torch.save`; a value of a class that torch does not know is a `StandIn`.

    Raises:
        WeightsError: it is damaged, or its pickle calls functions.
        OSError: it can't be read.
    """
    try:
        return _load(path)
    except pickle.UnpicklingError as error:
        return _load_with_stand_ins(path, error)


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecated calls, into our one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError):
        raise
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "TorchScript" in first:
            raise WeightsError(f"{path} is a TorchScript program, which is code: {SAVE_TENSORS}") from error
        raise WeightsError(f"{path} is truncated or not a checkpoint ({first}): get it again") from error


def _load_with_stand_ins(path: Path, refusal: Exception) -> object:
    inspected = _inspect(path)
    if inspected is None:
        raise WeightsError(
            f"{path} is damaged or holds more than tensors, and was not loaded, since it could run code: {SAVE_TENSORS}"
        ) from refusal
    structure, seen = inspected
    stand_ins = {name: _stand_in(name, one.container) for name, one in seen.items()}
    allowed: list[Any] = [(one, name) for name, one in stand_ins.items()]
    try:
        with torch.serialization.safe_globals(allowed):
            loaded = _load(path)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        culprit = blocked[1] if blocked else next((name for name in seen if not name.startswith("torch.")), "code")
        raise WeightsError(_refused(path, structure, culprit)) from error
    for name, one in stand_ins.items():
        if one.calls and not _DATA_CALLS.fullmatch(name):
            raise WeightsError(_refused(path, structure, name))
    return loaded


def _refused(path: Path, structure: object, name: str) -> str:
    where = next((entry for entry, found in _named(structure) if found == name), None)
    if name.startswith("torch.distributed."):
        return f"{path} holds {name} in {where or 'it'}: {SHARDED}"
    entry = "it" if where is None else "the file as a whole" if where == "" else f"its entry {where}"
    return (
        f"{path} was not loaded, since it could run code: {entry} needs {name}. Convert it safely: {SAVE_TENSORS}, "
        "or without that entry"
    )


def _inspect(path: Path) -> tuple[object, dict[str, _StandInClass]] | None:
    """The structure of a file's pickle and the classes that it names; None if that can't be read either."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [one for one in archive.infolist() if one.filename.rpartition("/")[2] == "data.pkl"]
                if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
                    return None
                inspector = _Inspector(io.BytesIO(archive.read(pickles[0])))
                return inspector.load(), inspector.stand_ins
        with path.open("rb") as file:
            for _ in range(3):  # a magic number, a version and the machine's sizes
                _Inspector(file).load()
            inspector = _Inspector(file)
            return inspector.load(), inspector.stand_ins
    except OSError:
        raise
    except Exception:  # a damaged pickle makes its reader raise nearly anything
        return None


def _named(structure: object) -> Iterator[tuple[str, str]]:
    """Entry and class of every stand-in in a structure, the outermost first."""
    level: list[tuple[str, object]] = [("", structure)]
    seen: set[int] = set()
    while level:
        below: list[tuple[str, object]] = []
        for entry, value in level:
            if id(value) in seen or len(seen) > MAX_LOOKED_AT:
                continue
            if isinstance(value, _StandInClass):
                yield entry, value.full_name
                continue
            if not isinstance(value, (Mapping, list, tuple, set, StandIn)):
                continue
            seen.add(id(value))
            if isinstance(value, StandIn):
                yield entry, type(value).full_name
                below += [(entry, one) for one in value.held]
            elif isinstance(value, Mapping):
                below += [(f"{entry}.{key}" if entry else str(key), one) for key, one in value.items()]
            else:
                below += [(entry, one) for one in value]
        level = below
