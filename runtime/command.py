"""What the commands `exporter` and `runtime` share: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from runtime.errors import ItaeError, UsageError, one_line

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line: no usage text before them."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def run(program: str, body: Callable[[], int], *, verbose: Callable[[], bool] = lambda: False) -> int:
    """Call `body` and give its exit code; an `ItaeError` becomes one line on stderr and its exit code.

    Args:
        program: the name before the error, `exporter` or `runtime`.
        body: the command; gives its own exit code.
        verbose: asked after an error: whether to print the traceback before the line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # an ASCII terminal can't show λ, nor any a name that isn't UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = body()
        sys.stdout.flush()
    except ItaeError as error:
        if verbose():
            traceback.print_exc()
        print(f"{program}: {one_line(error)}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted; nothing half-written was left", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone: `runtime info X | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code
