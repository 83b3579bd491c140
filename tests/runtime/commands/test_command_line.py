"""The command line that a report shows: every option of `cluster` and `evaluate` is read again as it was."""

import argparse
import functools
import itertools
import random
import shlex

import pytest

import runtime.__main__
from runtime.commands import cluster, evaluate
from runtime.commands.command_line import command_line

parser = functools.cache(runtime.__main__.parser)
COMMANDS = {"cluster": cluster, "evaluate": evaluate}
VALUES = {
    "k": ["7", "auto"],
    "k_range": ["2:3", "5:50"],
    "images_root": ["/old=/new", "a b", "-x=y"],
    "threads": ["1", "4"],
    "data": ["folder:my photos", "cifar10:$HOME/c.tar.gz", "folder:it's"],
}
"""By destination: values that the option's own type takes; other options have those of their type below."""
WORDS = {int: ["3", "0", "-4"], None: ["cuda:1", "torch-cpu"]}
PATHS = ["plain", "with space", "quo'te", "-dash", "--out", "ü", "*", "a=b"]


def actions(command: str) -> list[argparse.Action]:
    declared = argparse.ArgumentParser(add_help=False)
    COMMANDS[command].add_arguments(declared)
    return declared._actions


def values_of(action: argparse.Action) -> list[str]:
    if action.choices is not None:
        return [str(one) for one in action.choices]
    return VALUES.get(action.dest) or WORDS.get(action.type) or PATHS


def words(action: argparse.Action, generator: random.Random) -> list[str]:
    """An option as a user may write it, with a value of its own."""
    if action.nargs == 0:
        return [action.option_strings[0]]
    times = generator.randint(1, 3) if isinstance(action, argparse._AppendAction) else 1
    return [f"{action.option_strings[0]}={generator.choice(values_of(action))}" for _ in range(times)]


def given(command: str, generator: random.Random, chosen: set[str]) -> list[str]:
    positionals, options = [], []
    for action in actions(command):
        if not action.option_strings:
            positionals += generator.sample(PATHS, generator.randint(1, 3) if action.nargs == "+" else 1)
        elif action.required or action.dest in chosen:
            options += words(action, generator)
    return [command, *options, "--", *positionals]


def check(command: str, argv: list[str]) -> str:
    expected = parser().parse_args(argv)
    text = command_line(command, COMMANDS[command].add_arguments, expected)
    python, dash_m, runtime, *again = shlex.split(text)
    assert (python, dash_m, runtime) == ("python", "-m", "runtime")
    assert vars(parser().parse_args(again)) == vars(expected), text
    return text


OPTIONS = [(name, action.dest) for name in COMMANDS for action in actions(name) if action.option_strings]


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids="-".join)
def test_each_option_is_read_again_with_each_of_its_values(command, option):
    (action,) = [one for one in actions(command) if one.dest == option and one.option_strings]
    start = given(command, random.Random(0), set())
    for value in values_of(action) if action.nargs != 0 else [None]:
        word = action.option_strings[0] if value is None else f"{action.option_strings[0]}={value}"
        text = check(command, [command, word, *start[1:]])
        assert action.option_strings[0] in text or value == str(action.default)


@pytest.mark.parametrize("command", COMMANDS)
def test_many_combinations_are_read_again(command):
    declared = actions(command)
    optional = [one.dest for one in declared if one.option_strings and not one.required]
    seen = set()
    for number in range(200):
        generator = random.Random(number)
        chosen = set(generator.sample(optional, generator.randint(0, len(optional))))
        if {"cache", "no_cache"} <= chosen:  # they exclude each other
            chosen.remove("cache")
        seen |= set(itertools.combinations(sorted(chosen), 2))
        check(command, given(command, generator, chosen))
    pairs = set(itertools.combinations(sorted(optional), 2)) - {("cache", "no_cache")}
    assert seen == pairs  # every two options were there together


def test_what_is_shown_is_short():
    words = ["cluster", "embeddings/", "--k", "auto", "--k-range", "2:3", "--out", "my clusters"]
    assert check("cluster", words) == (
        "python -m runtime cluster --k auto --k-range 2:3 --out 'my clusters' embeddings"
    )


def test_an_option_of_an_unknown_kind_is_refused():
    def add_arguments(declared: argparse.ArgumentParser) -> None:
        declared.add_argument("--level", action="count")

    with pytest.raises(TypeError, match="--level: an option of this kind"):
        command_line("x", add_arguments, argparse.Namespace(level=2))


@pytest.mark.parametrize(
    "words", [["embed", "m.onnx", "a.png", "--out", "s3://b/x"], ["cluster", "s3://b/x", "--k", "2"]]
)
def test_a_url_in_the_place_of_a_path_is_refused(words, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert runtime.__main__.main(words) == 2
    assert "s3://b/x is a URL: give a path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
