"""The declaration of an option: its form, help, group and place in the manifest, all in one place.

A field of an options dataclass carries an `Option` in its annotation, beside its type and default. The checks, the
parser, `--help`, the manifest's record and the tests of bad values are all derived from that.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runtime.contract.argument_types import as_flag, as_path, as_text, shown
from runtime.contract.errors import UsageError


@dataclass(frozen=True)
class Form:
    """The values that an option takes, from Python and from the command line."""

    metavar: str | None = None
    """The name of the value in `--help`."""

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401  # it is here that a value gets its type
        """The value, in the form that the program uses.

        Raises:
            UsageError: the option does not take the value.
        """
        raise NotImplementedError

    def parse(self, option: str, text: str) -> Any:  # noqa: ANN401
        """The value of `text` on the command line.

        Raises:
            UsageError: `text` has no meaning.
        """
        return self.check(option, text)

    def show(self, default: Any) -> str:  # noqa: ANN401
        """The default as `--help` shows it; empty if the help states it in words."""
        return default if isinstance(default, str) else ""


@dataclass(frozen=True)
class Words(Form):
    """One of some words."""

    words: tuple[str, ...] = ()

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """A word of the list."""
        if not (isinstance(value, str) and value in self.words):
            raise UsageError(f"{option} {shown(value)}: must be one of {', '.join(self.words)}")
        return value


@dataclass(frozen=True)
class WordList(Form):
    """Some of some words, each once."""

    words: tuple[str, ...] = ()

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """A tuple of words of the list."""
        if not isinstance(value, tuple | list):
            raise UsageError(f"{option} {shown(value)}: must be a tuple of some of {', '.join(self.words)}")
        for word in value:
            Words(words=self.words).check(option, word)
        if not value or len(set(value)) != len(value):
            raise UsageError(f"{option} {','.join(value)}: name each output once, at least one")
        return tuple(value)

    def parse(self, option: str, text: str) -> Any:  # noqa: ANN401
        """Words with commas between them."""
        return self.check(option, tuple(word.strip() for word in text.split(",")))

    def show(self, default: Any) -> str:  # noqa: ANN401
        """Words with commas between them."""
        return "" if default is None else ",".join(default)


@dataclass(frozen=True)
class Flag(Form):
    """True or False."""

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """True or False themselves, not what Python takes for them."""
        return as_flag(value, option)


@dataclass(frozen=True)
class Whole(Form):
    """A whole number within bounds."""

    low: int = 1
    high: int | None = None

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """A whole number, not a bool."""
        if type(value) is not int:
            raise UsageError(f"{option} {shown(value)}: must be a whole number")
        if value < self.low or (self.high is not None and value > self.high):
            bounds = f"at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"
            raise UsageError(f"{option} {value}: must be {bounds}")
        return value

    def parse(self, option: str, text: str) -> Any:  # noqa: ANN401
        """Digits."""
        return self.check(option, _digits(option, text, text, "a whole number"))

    def show(self, default: Any) -> str:  # noqa: ANN401
        """The number."""
        return "" if default is None else str(default)


@dataclass(frozen=True)
class Between(Form):
    """A number between two others, neither of them included."""

    low: float = 0.0
    high: float = 1.0

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """A number, not a bool."""
        if type(value) not in (int, float):
            raise UsageError(f"{option} {shown(value)}: must be a number")
        if not self.low < value < self.high:
            raise UsageError(f"{option} {value}: must be above {self.low:g} and below {self.high:g}")
        return float(value)

    def parse(self, option: str, text: str) -> Any:  # noqa: ANN401
        """A decimal number."""
        try:
            return self.check(option, float(text))
        except ValueError as error:
            raise UsageError(f"{option} {text!r}: must be a number") from error


@dataclass(frozen=True)
class Sizes(Form):
    """One whole number, or `count` of them."""

    count: int = 2
    separator: str = "x"
    names: tuple[str, str] = ("N or HxW, such as 224 or 224x448", "N or (H, W)")
    """The form on the command line and in Python."""

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """A whole number, or a tuple of them."""
        parts = value if isinstance(value, tuple) and len(value) == self.count else (value,)
        if not all(type(part) is int for part in parts):
            raise UsageError(f"{option} {shown(value)}: must be {self.names[1]}, whole numbers")
        return value

    def parse(self, option: str, text: str) -> Any:  # noqa: ANN401
        """Digits, or some of them with separators between."""
        parts = [_digits(option, text, part, self.names[0]) for part in text.split(self.separator)]
        if len(parts) not in (1, self.count):
            raise UsageError(f"{option} {text!r}: must be {self.names[0]}")
        return parts[0] if len(parts) == 1 else tuple(parts)

    def show(self, default: Any) -> str:  # noqa: ANN401
        """As it is written on the command line."""
        return self.separator.join(map(str, default)) if isinstance(default, tuple) else str(default)


@dataclass(frozen=True)
class Text(Form):
    """Text that a function can read."""

    read: Callable[[str, str], object] = lambda _option, _text: None
    """Takes the option and its text; raises UsageError if it can't read it."""

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """Text."""
        self.read(option, as_text(value, option))
        return value


@dataclass(frozen=True)
class FileName(Form):
    """A path, or text in the form of one; as it was given."""

    as_text: bool = False
    """Whether a path becomes text."""
    recorded: bool = True
    """Whether the manifest, which is UTF-8, holds it or a name made of it."""

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """Text, or a path."""
        as_path(value, option)
        text = os.fspath(value)
        try:
            if self.recorded:
                text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{option} {text!r}: must be UTF-8, for the manifest") from error
        return text if self.as_text else value


@dataclass(frozen=True)
class Instance(Form):
    """An object of one class; options of its own, if it has any, are options of the command too."""

    of: type = object

    def check(self, option: str, value: Any) -> Any:  # noqa: ANN401
        """An object of the class."""
        if not isinstance(value, self.of):
            raise UsageError(f"{option} {shown(value)}: must be an {self.of.__name__}")
        return value


@dataclass(frozen=True)
class Option:
    """One option, but for its name, type and default, which are its field's."""

    help: str
    group: str
    """The heading in `--help`."""
    form: Form | None = None
    """None: as the field's type says, a Literal or bool."""
    record: tuple[str, str] | None = None
    """Its field in the manifest's `Options`, and the attribute that has its value with the defaults filled in."""


@dataclass(frozen=True)
class Declared:
    """One option with all that its field says."""

    name: str
    option: Option
    form: Form
    default: Any
    """`dataclasses.MISSING` if the option must be given."""
    optional: bool
    """Whether None is a value."""

    @property
    def flag(self) -> str:
        """How it is called on the command line."""
        words = self.name.replace("_", "-")
        return f"--no-{words}" if self.default is True else f"--{words}"

    @property
    def label(self) -> str:
        """How an error calls it."""
        return self.name if isinstance(self.form, Flag | Instance) else self.flag

    def check(self, value: Any) -> Any:  # noqa: ANN401
        """The value in the form that the program uses.

        Raises:
            UsageError: the option does not take it.
        """
        return None if value is None and self.optional else self.form.check(self.label, value)


@functools.cache
def declared(options: type) -> Mapping[str, Declared]:
    """The options that a dataclass declares, by field."""
    hints = typing.get_type_hints(options, include_extras=True)
    found = {}
    for field in dataclasses.fields(options):
        kind, option = typing.get_args(hints[field.name])
        has_factory = field.default_factory is not dataclasses.MISSING
        default: Any = field.default_factory() if has_factory else field.default  # type: ignore[operator]
        parts = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
        form = option.form or _form_of(next(part for part in parts if part is not types.NoneType))
        found[field.name] = Declared(field.name, option, form, default, types.NoneType in parts)
    return found


def check_options(options: Any) -> None:  # noqa: ANN401  # any dataclass whose fields are options
    """Check each field of a frozen dataclass by its declaration, and bring it into the program's form.

    Raises:
        UsageError: an option does not take the value that it was given.
    """
    kind: type = type(options)
    for name, one in declared(kind).items():
        object.__setattr__(options, name, one.check(getattr(options, name)))


def add_options(
    options: type,
    groups: Mapping[str, argparse._ArgumentGroup],
    *,
    fill: bool = True,
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
) -> None:
    """Add an argument for each option that the command line can give.

    Args:
        options: the dataclass that declares them.
        groups: the parser's groups, by heading.
        fill: whether an option that is not given gets its default; otherwise `given` leaves it out.
        only: names of the fields, if it is not all of them; they all go into the only group.
        without: names of fields that are left out.
    """
    for one in declared(options).values():
        if (only is not None and one.name not in only) or one.name in without:
            continue
        group, form = groups[one.option.group] if only is None else next(iter(groups.values())), one.form
        if isinstance(form, Instance):
            continue
        if isinstance(form, Flag):
            action = "store_false" if one.default is True else "store_true"
            group.add_argument(one.flag, dest=one.name, action=action, help=one.option.help)
            continue
        shown = "" if one.default is dataclasses.MISSING else form.show(one.default)
        reading: dict[str, Any] = {"type": functools.partial(form.parse, one.flag)}
        if isinstance(form, Words):
            reading = {"choices": form.words}
        if one.default is dataclasses.MISSING:
            reading["required"] = True
        else:
            reading["default"] = one.default if fill else argparse.SUPPRESS
        text = f"{one.option.help} (default: {shown})" if shown else one.option.help
        group.add_argument(one.flag, metavar=form.metavar, help=text, **reading)


def given(options: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of the options that were given, by field, of a parser whose `add_options` did not fill them."""
    return {name: getattr(arguments, name) for name in declared(options) if hasattr(arguments, name)}


def _form_of(kind: Any) -> Form:  # noqa: ANN401
    if kind is bool:
        return Flag()
    if typing.get_origin(kind) is Literal:
        return Words(words=typing.get_args(kind))
    raise TypeError(f"an option of type {kind} needs a form")


def _digits(option: str, text: str, part: str, form: str) -> int:
    part = part.strip()
    if not (part.isascii() and part.isdigit() and len(part) <= 9):
        raise UsageError(f"{option} {text!r}: must be {form}")
    return int(part)
