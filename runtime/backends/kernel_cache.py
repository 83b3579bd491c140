"""The kernels that TensorRT-RTX compiled for this GPU, kept beside the engine: `X.engine.cache`.

The manifest can't cover it, because it is written where the engine runs. So it carries a code that only a secret key
makes: this user's own, or the one in the file that ITAE_CACHE_KEY names, with which containers share their kernels.
A cache that somebody else wrote is not read. See DECISIONS.md.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from runtime.contract.atomic import write_atomically
from runtime.contract.errors import OutputFileError

TrtObject = Any
"""An object of TensorRT's bindings, which ship no types."""

MAGIC = b"itae kernel cache 1\n"
MAX_BYTES = 1 << 30
"""Largest file that is read; the kernels of one engine are megabytes."""
_CODE_BYTES = 32
_SECRET_BYTES = 32
KEY_VARIABLE = "ITAE_CACHE_KEY"
"""The environment variable that names the file of a shared key."""
MAX_KEY_BYTES = 4096

_log = logging.getLogger(__name__)


def cache_path(model: Path) -> Path:
    """Where the kernels of `model` are kept."""
    return model.with_name(f"{model.name}.cache")


def secret_path() -> Path:
    """Where this user's secret lies: `$XDG_STATE_HOME/itae/cache.key`, in `~/.local/state` where that is not set."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "itae" / "cache.key"


class KernelCache:
    """The kernels of one engine. Whatever is wrong with its file is one line in the log and costs time only."""

    def __init__(self, model: Path, sha256: str) -> None:
        """For the engine `model`, whose SHA-256 is `sha256`."""
        self._path = cache_path(model)
        self._engine = sha256
        self._cache: TrtObject = None
        self._kept: bytes | None = None

    def attach(self, runtime_config: TrtObject) -> None:
        """Let what is made with `runtime_config` take its kernels from here, and put new ones here."""
        runtime_cache = runtime_config.create_runtime_cache()
        kept = self._read()
        if kept is not None and not runtime_cache.deserialize(kept):
            self._complain("is of another version, driver or GPU")
            kept = None
        if runtime_config.set_runtime_cache(runtime_cache):
            self._cache, self._kept = runtime_cache, kept

    def save(self) -> None:
        """Write the kernels, where there are new ones."""
        runtime_cache, self._cache = self._cache, None
        serialized = runtime_cache.serialize() if runtime_cache is not None else None
        if serialized is None:
            return
        kernels = bytes(serialized)
        secret = _secret()
        if kernels == self._kept or not kernels or secret is None:
            return
        try:
            write_atomically(self._path, MAGIC + self._code(secret, kernels) + kernels)
        except OutputFileError as error:
            _log.warning("kernels are compiled again next time: %s", error)

    def _read(self) -> bytes | None:
        """The kernels in the file, if they are ours and for this engine."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as problem:
            self._complain(f"can't be read: {problem.strerror}")
            return None
        if len(data) > MAX_BYTES or not data.startswith(MAGIC):
            self._complain("is no file of this program")
            return None
        code, kernels = data[len(MAGIC) :][:_CODE_BYTES], data[len(MAGIC) + _CODE_BYTES :]
        secret = _secret()
        if secret is None or not hmac.compare_digest(code, self._code(secret, kernels)):
            self._complain("was not written here for this engine, or is damaged")
            return None
        return kernels

    def _code(self, secret: bytes, kernels: bytes) -> bytes:
        return hmac.digest(secret, self._engine.encode() + hashlib.sha256(kernels).digest(), "sha256")

    def _complain(self, what: str) -> None:
        _log.warning("%s %s: not used, kernels are compiled again", self._path, what)


def _secret() -> bytes | None:
    """Return the key of the code, or None if there is none."""
    shared = os.environ.get(KEY_VARIABLE)
    return _shared_key(Path(shared)) if shared else _own_secret()


def _shared_key(path: Path) -> bytes | None:
    """Return the key that this user was given. It is never made, and who may read it is up to who gave it."""
    try:
        with path.open("rb") as file:
            key = file.read(MAX_KEY_BYTES + 1)
    except (OSError, ValueError) as error:
        _log.warning("kernels are not kept: can't read the key that %s names: %s", KEY_VARIABLE, error)
        return None
    if not _SECRET_BYTES <= len(key) <= MAX_KEY_BYTES:
        wanted = f"{_SECRET_BYTES} to {MAX_KEY_BYTES} bytes"
        _log.warning("kernels are not kept: %s, which %s names, must have %s", path, KEY_VARIABLE, wanted)
        return None
    return key


def _own_secret() -> bytes | None:
    """Return this user's secret, made when it is first needed; None if there is nowhere to keep one."""
    path = Path("~/.local/state/itae")
    try:
        path = secret_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            secret = file.read(_SECRET_BYTES + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        _log.warning("kernels are not kept: can't keep a secret in %s (%s)", path, error)
        return None
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077 or len(secret) != _SECRET_BYTES:
        _log.warning("kernels are not kept: %s is not a secret of this user alone; remove it", path)
        return None
    return secret
