"""Ray: a cluster that is there, or one that is started on this machine and ended again."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.contract.atomic import is_alive, uninterrupted
from runtime.contract.errors import BackendError, UsageError, one_line
from runtime.contract.machine import usable_cores

LOCAL = "local"
"""In place of an address: start Ray on this machine, for this command alone."""
_OBJECT_STORE = 1 << 30
"""Bytes for images between decoding and the model, on this machine: some seconds of work."""
_FOLDER = "itae-ray-"
_OURS = re.compile(rf"{_FOLDER}(\d{{1,9}})-\w+")
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # or C++ writes to stderr
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TASK_MAX_RETRIES": "10",  # of what a machine that died was doing
}
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_CONNECT_SECONDS = 10
_MAX_REASON = 300


def require_ray(option: str) -> None:
    """Check that Ray Data can be imported; `option` is what asks for it.

    Raises:
        BackendError: it is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pandas")):
        raise BackendError(f"{option} needs Ray Data, which is not installed here: pip install 'itae[ray]'")


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster in the block; yields the module `ray`.

    Where this program is connected already, that cluster is used, and stays.

    Args:
        address: `local`, to start Ray on this machine and end it after the block; `auto` for the cluster that this
            machine belongs to; or HOST:PORT of such a cluster.

    Raises:
        UsageError: it is no such address.
        BackendError: there is no such cluster, or Ray can't be started; or Ray failed in the block.
    """
    if address not in (LOCAL, "auto"):
        _check_address(address)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        with _translated(sys.modules["ray"], address):
            yield sys.modules["ray"]
        return
    chosen = dict(_ENVIRONMENT)
    if address == LOCAL and not any(name in os.environ for name in _AUTHENTICATION):
        # Nobody else may use it; without these, Ray would leave a secret in the user's home.
        chosen |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    added = {name: value for name, value in chosen.items() if name not in os.environ}
    os.environ.update(added)
    folder = _local_folder() if address == LOCAL else None
    try:
        ray = importlib.import_module("ray")
        try:
            with uninterrupted(), _silent():  # half started, it would leave processes; and it sets handlers of its own
                _start(ray, address, folder)
            with _translated(ray, address):
                yield ray
        finally:
            # It may have died: the work is what counts.
            with contextlib.suppress(Exception), uninterrupted(), _silent():
                ray.shutdown()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def ray_data(**settings: object) -> Iterator[Any]:
    """Yield the module `ray.data`; data sets that are made in the block are silent and have these `settings`.

    Args:
        settings: attributes of Ray's `DataContext`.
    """
    data = importlib.import_module("ray.data")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = data.DataContext.get_current().copy()
    for name, value in {"enable_progress_bars": False, "print_on_execution_start": False, **settings}.items():
        setattr(context, name, value)
    with data.DataContext.current(context):
        yield data


def _check_address(address: str) -> None:
    """Check that something answers at HOST:PORT, since Ray would try for minutes."""
    if address.startswith("ray://"):
        raise UsageError(f"--ray {address}: run the command on a machine of the cluster, with --ray auto")
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UsageError(f"--ray {address}: give local, auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise BackendError(f"--ray {address}: there is no such Ray cluster ({error.strerror or error})") from error


@contextlib.contextmanager
def _translated(ray: Any, address: str) -> Iterator[None]:  # noqa: ANN401  # a module
    """A block in which Ray's errors become ours, and what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # as "(raylet) A worker died"
            yield
    except ray.exceptions.RayError as error:
        raise BackendError(
            f"--ray {address}: {_reason(error)}; what was written stays, the same command goes on from there"
        ) from error


def _start(ray: Any, address: str, folder: Path | None) -> None:  # noqa: ANN401  # a module
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    try:
        if folder is not None:
            ray.init(
                address=LOCAL,
                num_cpus=usable_cores(),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                _temp_dir=str(folder),
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except Exception as error:  # of any kind: ConnectionError, ValueError, RuntimeError, Ray's own
        what = "can't start Ray on this machine" if folder is not None else "there is no such Ray cluster"
        raise BackendError(f"--ray {address}: {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The last line of an error, which is what Ray's long ones end with."""
    lines = str(error).strip().splitlines()
    text = lines[-1] if lines else ""
    return f"{type(error).__name__}: {one_line(Exception(text))[:_MAX_REASON]}"


def _local_folder() -> Path:
    """A folder for Ray's logs and sockets, whose path must be short; folders of killed commands are removed."""
    parent = Path(tempfile.gettempdir())
    for one in parent.glob(f"{_FOLDER}*"):
        if (found := _OURS.fullmatch(one.name)) and not is_alive(int(found[1])):
            shutil.rmtree(one, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=parent, prefix=f"{_FOLDER}{os.getpid()}-"))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Let nothing come to stderr that Ray's libraries write there past Python."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
