"""One-line errors and exit codes, shared by the commands `exporter` and `runtime`."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from runtime.contract.atomic import forget_warnings
from runtime.contract.errors import ItaeError, UsageError, one_line, plain
from runtime.contract.machine import MAX_THREADS, require_supported_platform

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line: no usage text before them."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def text(argument: str) -> str:
    """Return a path or URL as it was given; raises argparse's error if it is empty."""
    if not argument:  # from an unset variable, for example: Path would take it for the current folder
        raise argparse.ArgumentTypeError("an empty path")
    return argument


def program_name(module: str) -> str:
    """The name of the program for `--help`: the installed command's, or `python -m` and the module."""
    name = Path(sys.argv[0]).name
    return name if name not in ("__main__.py", "") else f"python -m {module}"


def add_loudness(parser: argparse.ArgumentParser | argparse._ArgumentGroup, details: str) -> None:
    """Declare --quiet and --verbose, of which the second prints these details."""
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print nothing but errors")
    loud.add_argument("--verbose", action="store_true", help=f"print {details}")


def add_threads(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare --threads; the program holds itself to it by `machine.limited_threads`."""
    what = "threads that compute and decode on the CPU (default: the cores of this process, or a container's quota)"
    parser.add_argument("--threads", metavar="N", type=_threads, help=what)


def _threads(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= MAX_THREADS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 to {MAX_THREADS}")


def run(program: str, body: Callable[[], int], *, verbose: Callable[[], bool] = lambda: False) -> int:
    """Call `body` and return its exit code; an `ItaeError` becomes one line on stderr and its own exit code.

    Args:
        program: the name before the error, `exporter` or `runtime`.
        body: the command; returns its exit code.
        verbose: called after an error; returns whether to print the traceback before the line.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`; it also keeps its number from the files opened later
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115  # to the end of the process
    if isinstance(sys.stdout, io.TextIOWrapper):  # an ASCII terminal can't show λ, nor any a name that isn't UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        # SIGTERM as Ctrl-C, so that half-written files go. Python gives it a default action that leaves them.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    forget_warnings()
    try:
        require_supported_platform()
        with _warnings_shown(program):
            code = body()
        sys.stdout.flush()
    except ItaeError as error:
        if verbose():
            traceback.print_exc()
        print(f"{program}: {one_line(error)}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt as error:
        what = f"; {error}" if str(error) else ""
        print(f"{program}: interrupted{what}", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if verbose():
            traceback.print_exc()
        package = (error.name or "").partition(".")[0]
        extra = "export,cpu" if program == "exporter" else "cpu"
        print(  # noqa: T201
            f"{program}: needs the Python package {package}, which is not installed here: install itae with the "
            f"extras [{extra}], or use the Python of .venv that scripts/setup makes",
            file=sys.stderr,
        )
        return 2
    except OSError as error:  # stdout without its reader or on a full disk; the rest is translated where it happens
        if isinstance(error, BrokenPipeError) and _reader_has_gone(sys.stdout):  # `runtime info X | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        if verbose():
            traceback.print_exc()
        print(f"{program}: {one_line(error)}", file=sys.stderr)  # noqa: T201
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it fails again at exit
        return 2
    return code


def _reader_has_gone(stream: TextIO) -> bool:
    """Whether a stream is a pipe or socket that nobody reads any more."""
    asked = select.poll()
    try:
        asked.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))
    except (OSError, ValueError):  # it has no number, or is closed
        return False


@contextlib.contextmanager
def _warnings_shown(program: str) -> Iterator[None]:
    """Print what our modules log as warnings, a line each."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: print(  # type: ignore[method-assign]  # noqa: T201
        f"{program}: {plain(record.getMessage())}", file=sys.stderr
    )
    logger = logging.getLogger("runtime")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def count(number: int, what: str) -> str:
    """A number of things in words: `1 image`, `1,234 images`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
