"""Files that belong together take the place of older ones: all of them or none.

One file of a set is its seal (a manifest, a summary): a reader believes no file of a set without it. An exchange of
sets goes by renames alone, so that nothing is copied:

1. A hidden folder `.SEAL.exchange` appears beside the seal, with the plan of what goes and what comes.
2. The older seal moves into it. From here on readers refuse.
3. The other older files move into it, and the new ones take their places.
4. The new seal takes its place. From here on readers find the new set.
5. The hidden folder goes, and the older files with it.

A failure on the way puts the older files back. After a kill the next command does, and until then readers refuse.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.contract.atomic import (
    cannot_write,
    hidden_name,
    identity,
    is_alive,
    locked,
    sync_file,
    sync_folder,
    this_host,
    uninterrupted,
)
from runtime.contract.errors import OutputFileError

_SUFFIX = "exchange"
_PLAN = "plan.json"
_OLDER = "older"
_PATIENCE = 10.0
"""Seconds to wait for another process that exchanges the same set, which takes it milliseconds."""


@dataclass(frozen=True)
class FileSet:
    """Finished files, and where they go."""

    seal: Path
    """Where the file goes without which no reader believes the others."""
    sources: Mapping[str, Path]
    """Where each finished file lies, by its name beside the seal: the main file first, the seal anywhere."""
    obsolete: Sequence[str] = ()
    """Names of files that an older set may have and the new one lacks."""


def publish_sets(sets: Sequence[FileSet], work: Path) -> None:
    """Put sets of files in their places, all of them or none.

    Args:
        sets: one or more, of different seals; all of them, and their sources, on one file system.
        work: a folder for temporary files there.

    Raises:
        OutputFileError: a file can't be made durable or moved, or another process exchanges one of these sets. The
            message says what lies there now, as it was found.
    """
    at = sets[0].seal
    exchanges: list[_Exchange] = []
    with contextlib.ExitStack() as stack:
        try:
            for one in sets:
                at = one.seal
                _wait_for_others(at)
            exchanges = [_Exchange(one) for one in sets]
            for one in sets:
                for name, source in one.sources.items():
                    at = one.seal.with_name(name)
                    with source.open("rb+") as file:
                        sync_file(file.fileno(), at)
            stack.enter_context(uninterrupted())
            for number, exchange in enumerate(exchanges):
                at = exchange.seal.with_name(next(iter(sets[number].sources)))
                exchange.begin(work / f"{_SUFFIX}-{number}", stack)
            for exchange in exchanges:
                for name in exchange.plan.older:
                    at = exchange.seal.with_name(name)
                    exchange.retire(name)
                for name in exchange.others:
                    at = exchange.seal.with_name(name)
                    exchange.place(name)
                sync_folder(exchange.seal.parent)
            for exchange in exchanges:
                at = exchange.seal
                exchange.place(at.name)
                sync_folder(at.parent)
        except BaseException as error:
            for exchange in reversed(exchanges):
                exchange.undo()
            if isinstance(error, OSError):
                raise cannot_write(at, error, _found(exchanges) if exchanges else "") from error
            raise
        for exchange in exchanges:
            _close(exchange.folder)


def recover(folder: Path) -> None:
    """Undo what runs that were killed have left half done in `folder`; what can't be undone now stays as it is."""
    with contextlib.suppress(OSError, OutputFileError):
        for exchange in folder.glob(f".*.{_SUFFIX}"):
            with contextlib.suppress(OSError, OutputFileError):
                _recovered(exchange)


def is_interrupted(seal: Path) -> bool:
    """Whether files were being put in their places when a run was killed, or are right now; asked without a seal."""
    try:
        return (_exchange_folder(seal) / _PLAN).is_file()
    except OSError:
        return False


@dataclass(frozen=True)
class _Plan:
    """Enough to undo an exchange."""

    seal: str
    older: tuple[str, ...]
    """Names of the files that were there, but the seal."""
    fresh: tuple[str, ...]
    """Names of the files that come and were not there, but the seal."""
    had_seal: bool
    host: str
    process: int
    token: str
    """A random word that distinguishes this plan from those of other exchanges."""


class _Exchange:
    """One set on its way."""

    def __init__(self, files: FileSet) -> None:
        """Look at what is there and what comes; raises OSError."""
        self.seal, self._sources = files.seal, files.sources
        self.folder = _exchange_folder(files.seal)
        self.others = [name for name in files.sources if name != files.seal.name]
        self._before = {name: identity(files.seal.with_name(name)) for name in (*files.sources, *files.obsolete)}
        self._after = {name: identity(files.sources[name]) if name in files.sources else None for name in self._before}
        self.plan = _Plan(
            seal=files.seal.name,
            older=tuple(name for name, found in self._before.items() if found and name != files.seal.name),
            fresh=tuple(name for name in self.others if self._before[name] is None),
            had_seal=self._before[files.seal.name] is not None,
            host=this_host(),
            process=os.getpid(),
            token=secrets.token_hex(8),
        )
        self._has_begun = False

    def begin(self, staging: Path, stack: contextlib.ExitStack) -> None:
        """Steps 1 and 2. The hidden folder appears with its plan in it and locked, until the stack ends."""
        (staging / _OLDER).mkdir(parents=True)
        with (staging / _PLAN).open("wb") as file:
            file.write(json.dumps(asdict(self.plan)).encode())
            file.flush()
            sync_file(file.fileno(), self.seal)
        stack.enter_context(locked(staging))
        self._has_begun = True  # before it has: then a rename that fails after its work is undone as well
        staging.rename(self.folder)
        sync_folder(self.seal.parent)
        if self.plan.had_seal:
            self.retire(self.seal.name)
            sync_folder(self.seal.parent)

    def retire(self, name: str) -> None:
        """Move an older file into the hidden folder; raises OSError."""
        self.seal.with_name(name).replace(self.folder / _OLDER / name)

    def place(self, name: str) -> None:
        """Move a new file to its place; raises OSError."""
        self._sources[name].replace(self.seal.with_name(name))

    def undo(self) -> None:
        """Put the older files back; where that fails, the hidden folder stays."""
        with contextlib.suppress(OSError, OutputFileError):
            if self._has_begun and _read_plan(self.folder) == self.plan:
                _restore(self.folder, self.plan)
                _close(self.folder)

    def found(self) -> str:
        """The set that lies there now: `none`, `older`, `new` or otherwise `neither`; raises OSError."""
        now = {name: identity(self.seal.with_name(name)) for name in self._before}
        if now == self._before:
            return "older" if any(now.values()) else "none"
        return "new" if now == self._after else "neither"


def _exchange_folder(seal: Path) -> Path:
    return seal.with_name(hidden_name(seal.name, _SUFFIX))


def _found(exchanges: Sequence[_Exchange]) -> str:
    """Look at the places of all sets and describe in words what lies there."""
    try:
        found = {exchange: exchange.found() for exchange in exchanges}
    except OSError:
        return "what is there now can't be seen"
    kinds = set(found.values())
    if kinds <= {"none"}:
        return "nothing was left there"
    if kinds <= {"none", "older"}:
        return "what was there is as before"
    if kinds == {"new"}:
        return "all new files are there"
    said = []
    for exchange, kind in found.items():
        if kind != "neither":
            said.append(f"of {exchange.seal.name} all {'new' if kind == 'new' else 'older'} files are there")
        elif is_interrupted(exchange.seal) and not os.path.lexists(exchange.seal):
            said.append(
                f"{exchange.seal.name} is missing, and files of two runs may lie beside it: run the same command "
                f"again, which first puts the older files back from {exchange.folder.name}"
            )
        else:
            said.append(f"what is there now is not what was there before: make {exchange.seal.name} again")
    return "; ".join(said)


def _wait_for_others(seal: Path) -> None:
    """Wait until no one exchanges the set of `seal`, and undo what a killed run has left half done.

    Raises:
        OutputFileError: another process takes too long.
        OSError: the older files can't be put back.
    """
    deadline = time.monotonic() + _PATIENCE
    while not _recovered(_exchange_folder(seal)):
        if time.monotonic() > deadline:
            raise OutputFileError(f"can't write {seal}: another run is writing it; wait for it")
        time.sleep(0.02)


def _recovered(folder: Path) -> bool:
    """Undo an exchange whose process was killed; False where it lives.

    Raises:
        OSError, OutputFileError: the older files can't be put back.
    """
    before = identity(folder)
    if before is None:
        return True
    try:
        with locked(folder) as is_free:
            if identity(folder) != before:  # the lock may be of a folder that is gone, and this one another's
                return False
            plan = _read_plan(folder)
            if is_free is False or (is_free is None and plan is not None and _runs_elsewhere(plan)):
                return False
            if plan is not None and not os.path.lexists(folder.with_name(plan.seal)):
                _restore(folder, plan)
            _close(folder)
    except OutputFileError:
        if identity(folder) is None:  # its process has ended the exchange meanwhile
            return True
        raise
    return True


def _runs_elsewhere(plan: _Plan) -> bool:
    """Whether another process of this host still has the number of the one that began; of other hosts: no."""
    return plan.host == this_host() and plan.process != os.getpid() and is_alive(plan.process)


def _restore(folder: Path, plan: _Plan) -> None:
    """Put the older files back, the seal last; raises OSError, and may then be called again."""
    place, older = folder.parent, folder / _OLDER
    if not plan.had_seal or os.path.lexists(older / plan.seal):
        (place / plan.seal).unlink(missing_ok=True)
    for name in plan.fresh:
        (place / name).unlink(missing_ok=True)
    for name in plan.older:
        _put_back(older / name, place / name)
    sync_folder(place)
    _put_back(older / plan.seal, place / plan.seal)
    sync_folder(place)


def _put_back(older: Path, place: Path) -> None:
    """Move an older file back, if it was moved; raises OSError."""
    if not os.path.lexists(older):
        return
    try:
        older.replace(place)
    except OSError:  # what made the exchange fail may do so again: another way
        place.unlink(missing_ok=True)
        os.link(older, place, follow_symlinks=False)


def _close(folder: Path) -> None:
    """Remove a hidden folder; what can't be removed is without its plan, and means nothing."""
    with contextlib.suppress(OSError):
        (folder / _PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _read_plan(folder: Path) -> _Plan | None:
    """The plan of an exchange; None if there is none, as after the end of an exchange.

    Raises:
        OSError: it can't be read.
        OutputFileError: it is damaged.
    """
    try:
        data = (folder / _PLAN).read_bytes()
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(data)
        plan = _Plan(**{**fields, "older": tuple(fields["older"]), "fresh": tuple(fields["fresh"])})
        if all(Path(name).name == name for name in (plan.seal, *plan.older, *plan.fresh)):
            return plan
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise OutputFileError(f"{folder / _PLAN} is damaged: move the files of {folder / _OLDER} to where they belong")
