"""Writes the option tables of exporter/README.md and runtime/README.md, as the parsers declare the options.

A table lies between the lines `<!-- options: COMMAND -->` and `<!-- end of options -->`; COMMAND is `exporter` or a
subcommand of `python -m runtime`. tests/test_promises.py checks that the files are up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import runtime.__main__  # noqa: E402
from exporter import arguments, by_name, onnx_command  # noqa: E402
from exporter.calibration import command as calibrate  # noqa: E402
from exporter.foreign import inspection  # noqa: E402

PAGES = (ROOT / "exporter/README.md", ROOT / "runtime/README.md")
BLOCK = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end of options -->)", re.DOTALL)
HEADER = "| option | values | default | meaning |\n|---|---|---|---|\n"
STATED = re.compile(r"(?:^|\s*\()default: ([^()]*(?:\([^()]*\))?[^()]*?)\)?$")
"""The default at the end of a help text."""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the exporter's commands and those of the runtime's subcommands, by their names."""
    top = runtime.__main__.parser()
    (commands,) = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    of_exporter = {
        "exporter": arguments.parser(),
        "calibrate": calibrate.parser(),
        "inspect": inspection.parser(),
        "onnx": onnx_command.parser(),
        "model": by_name.parser(),
    }
    return {**of_exporter, **commands.choices}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a parser, `--help` left out."""
    return {word for action in parser._actions for word in action.option_strings if word.startswith("--")} - {"--help"}


def table(parser: argparse.ArgumentParser) -> str:
    """A Markdown table for each group of a parser's options, the positional arguments first.

    Raises:
        ValueError: a help text states another default than the parser has.
    """
    parts = []
    usual: list[argparse.Action] = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if group.title in ("positional arguments", "options"):
            usual += actions
        elif actions:
            title = f"{str(group.title)[0].upper()}{str(group.title)[1:]}"
            parts.append(f"**{title}**\n\n{_rows(parser, actions)}")
    return "\n".join([*([_rows(parser, usual)] if usual else []), *parts])


def _rows(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> str:
    return HEADER + "".join(f"| {' | '.join(_cells(parser, action))} |\n" for action in actions)


def _cells(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """The four cells of one option."""
    name = action.option_strings[-1] if action.option_strings else str(action.metavar)
    takes_value = action.nargs != 0 and bool(action.option_strings)
    if action.choices is not None:
        values = ", ".join(f"`{choice}`" for choice in action.choices)
    else:
        values = f"`{action.metavar or action.dest.upper()}`" if takes_value else ""
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    stated = STATED.search(text)
    default = stated.group(1) if stated else ""
    if takes_value and action.default not in (None, [], argparse.SUPPRESS):
        if default and default.replace(",", "") != _as_text(action.default).replace(",", ""):
            raise ValueError(f"{parser.prog} {name}: its help states {default}, its parser has {action.default}")
        default = default or _as_text(action.default)
    if default and " " not in default:
        default = f"`{default}`"
    if action.required and action.option_strings:
        default = "required"
    meaning = STATED.sub("", text)
    return [cell.replace("|", "\\|").strip() for cell in (f"`{name}`", values, default, meaning)]


def _as_text(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def filled(text: str) -> str:
    """A page with its tables as they should be."""
    known = parsers()
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(known[found[2]])}\n{found[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
