"""Steps that are done once: a second run does those that are missing, or whose inputs or outputs have changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.contract.atomic import write_atomically

LARGE = 16 << 20
"""Bytes of a file from which on its size alone is looked at. Models are large; their manifests are hashed."""

Say = Callable[[str], None]


class Steps:
    """The steps of a study, each with a record in a folder, which is written last."""

    def __init__(self, folder: Path, total: int, say: Say) -> None:
        """Prepare.

        Args:
            folder: the study's folder; records are kept in its `steps`.
            total: number of steps, for the progress.
            say: shows a line.
        """
        self._folder, self._total, self._say = folder, total, say
        self._number = 0

    def take(
        self, name: str, what: str, inputs: Mapping[str, Any], outputs: Sequence[Path], make: Callable[[], object]
    ) -> None:
        """Make some files, unless they are there, as they were made, from the same inputs.

        Args:
            name: of the step.
            what: the same in words.
            inputs: everything that the outputs depend on, as JSON has it.
            outputs: files in the study's folder that are there afterwards, or folders.
            make: makes them.

        Raises:
            ItaeError: as `make`.
        """
        self._number += 1
        place = f"[{self._number}/{self._total}] {what}"
        record = self._folder / "steps" / f"{name}.json"
        if self._is_done(record, inputs, outputs):
            self._say(f"{place}: as before")
            return
        self._say(place)
        start = time.monotonic()
        record.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        make()
        found = {str(one.relative_to(self._folder)): _identity(one) for one in outputs}
        content = {"inputs": inputs, "outputs": found, "seconds": round(time.monotonic() - start, 1)}
        write_atomically(record, json.dumps(content, indent=1).encode())

    def leave_out(self, what: str, why: str) -> None:
        """Say that a step is not taken."""
        self._number += 1
        self._say(f"[{self._number}/{self._total}] {what}: {why}")

    def _is_done(self, record: Path, inputs: Mapping[str, Any], outputs: Sequence[Path]) -> bool:
        try:
            kept = json.loads(record.read_bytes())
            made_from, made = kept["inputs"], kept["outputs"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        now = {str(one.relative_to(self._folder)): _identity(one) for one in outputs}
        return bool(made_from == json.loads(json.dumps(inputs)) and made == now)


def _identity(path: Path) -> str | None:
    """The hash or size of an output, to see whether it is as it was made; None if it is not there."""
    try:
        if path.is_dir():
            return f"{len(list(path.iterdir()))} files"
        size = path.stat().st_size
        return f"{size} bytes" if size >= LARGE else hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
