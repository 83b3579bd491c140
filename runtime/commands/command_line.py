"""A command's arguments as the words that give them again: what a report shows can be run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable


def command_line(
    name: str, add_arguments: Callable[[argparse.ArgumentParser], None], arguments: argparse.Namespace
) -> str:
    """Return `python -m runtime NAME ...`, which a shell and the parser turn into the same arguments.

    Args:
        name: of the command.
        add_arguments: declares its options.
        arguments: what was parsed; an option that has its default is left out.

    Raises:
        TypeError: an option is of a kind that no command has so far.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    options: list[str] = []
    positionals: list[str] = []
    for action in parser._actions:  # argparse has no public list of what was declared
        value = getattr(arguments, action.dest)
        if not action.option_strings:
            positionals += [str(one) for one in (value if isinstance(value, list) else [value])]
        elif value != action.default:
            options += _words(action, value)
    hidden = ["--"] if any(word.startswith("-") for word in positionals) else []
    return shlex.join(["python", "-m", "runtime", name, *options, *hidden, *positionals])


def _words(action: argparse.Action, value: object) -> list[str]:
    """The words of one option that has not its default."""
    option = action.option_strings[-1]
    if isinstance(action, argparse._StoreTrueAction):
        return [option]
    if isinstance(action, argparse._AppendAction) and isinstance(value, list):
        return [word for one in value for word in _pair(option, str(one))]
    if type(action) is argparse._StoreAction and action.nargs is None:
        return _pair(option, str(value))
    raise TypeError(f"{option}: an option of this kind can't be written again")


def _pair(option: str, text: str) -> list[str]:
    """An option and its value; in one word where the value would be read as an option."""
    return [f"{option}={text}"] if text.startswith("-") or not text else [option, text]
