"""What `bench --tune` chose: written, read on the same machine only, refused where anything is another or damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

import runtime
from runtime.__main__ import main
from runtime.backends import tuned
from runtime.backends.tuned import Choice, read_tuned, settled, this_machine, tuned_path, write_tuned
from runtime.contract import instructions
from runtime.contract.errors import InputError, UsageError
from runtime.contract.manifest import read_manifest

CHOICE = Choice("cpu", "fp32", batch=3, streams=1)


@pytest.fixture
def chosen(tiny):
    """A model with a choice for this machine."""
    write_tuned(tiny, read_manifest(tiny), CHOICE, 0.999, {"figures": [1, 2]})
    return tiny


def rewritten(path, **changes):
    """The file of a choice with other fields, and a right hash."""
    fields = json.loads(tuned_path(path).read_bytes())
    del fields["sha256"]
    tuned_path(path).write_bytes(tuned.TUNED_FILE.to_bytes({**fields, **changes}, indent=1))


def test_a_choice_is_read_as_it_was_written(chosen) -> None:
    manifest = read_manifest(chosen)
    assert read_tuned(chosen, manifest) == CHOICE
    assert settled(chosen, manifest, "tuned", None) == ("cpu", "fp32", CHOICE)


def test_other_providers_are_left_alone_without_a_file(tiny) -> None:
    assert settled(tiny, read_manifest(tiny), "openvino", "bf16") == ("openvino", "bf16", None)


def test_a_missing_choice_says_how_to_make_one(tiny) -> None:
    with pytest.raises(UsageError, match=r"there is no .*tiny\.onnx\.tuned\.json.*: run `python -m runtime bench"):
        runtime.load(tiny, "tuned")


def test_a_compute_type_beside_it_is_refused(chosen) -> None:
    with pytest.raises(UsageError, match="compute bf16: the provider tuned has a compute type of its own"):
        runtime.load(chosen, "tuned", compute="bf16")


def test_an_engine_has_nothing_to_tune(make_model, tmp_path) -> None:
    engine = make_model(tmp_path, "tiny.engine", builder="tensorrt", batch=(1, 2, 4))
    with pytest.raises(UsageError, match="is an engine, which runs in one way"):
        settled(engine, read_manifest(engine), "tuned", None)


OTHERS = {
    "cpu": ({"cpu": "Z80"}, "for another machine: cpu is Z80 there"),
    "instructions": ({"instructions": ["amx_bf16"]}, "for another machine: instructions is .*amx_bf16.* there"),
    "cores": ({"cores": 128}, "for another machine: cores is 128 there"),
    "gpus": ({"gpus": ["H100"]}, "for another machine: gpus is .*H100.* there"),
    "version": ({"libraries": {"numpy": "1.0"}}, "for another machine: libraries.itae is missing there"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_choice_of_another_machine_is_refused(name, chosen) -> None:
    changes, message = OTHERS[name]
    rewritten(chosen, machine={**this_machine(), **changes})
    with pytest.raises(UsageError, match=message):
        runtime.load(chosen, "tuned")


def test_the_choice_of_another_model_is_refused(chosen) -> None:
    rewritten(chosen, model={"sha256": "12" * 32})
    with pytest.raises(UsageError, match=r"for another model: sha256 is 1212.*run `python -m runtime bench"):
        runtime.load(chosen, "tuned")


@pytest.mark.parametrize("machine", [None, [], "this one"], ids=str)
def test_a_choice_for_no_machine_is_refused(machine, chosen) -> None:
    rewritten(chosen, machine=machine)
    with pytest.raises(UsageError, match="for another machine: it does not say for which"):
        runtime.load(chosen, "tuned")


DAMAGED = {
    "empty": (lambda text: b"", "is not JSON"),
    "cut": (lambda text: text[: len(text) // 2], "is not JSON"),
    "NaN": (lambda text: text.replace(b"0.999", b"NaN"), "is not JSON"),
    "twice": (lambda text: text.replace(b'"choice"', b'"machine"', 1), "is not JSON"),
    "deep": (lambda text: b"[" * 100_000, "is not JSON"),
    "list": (lambda text: b"[]", "has no version: not a choice of `bench --tune`"),
    "changed": (lambda text: text.replace(b'"batch": 3', b'"batch": 4'), "does not match its own hash"),
    "large": (lambda text: text + b" " * tuned.TUNED_FILE.max_bytes, "is larger than 4194304 bytes"),
    "bytes": (lambda text: b"\xff\xfe" + text, "is not JSON"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_one_line(name, chosen) -> None:
    damage, message = DAMAGED[name]
    path = tuned_path(chosen)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        runtime.load(chosen, "tuned")
    assert "\n" not in str(caught.value)


def test_a_later_version_is_refused(chosen) -> None:
    rewritten(chosen, version=2)
    with pytest.raises(InputError, match="has choice of `bench --tune` format 2, this version reads up to 1"):
        runtime.load(chosen, "tuned")


GOOD = {"provider": "cpu", "compute": "fp32", "batch": 3, "streams": 1}
BAD = [
    {**GOOD, "provider": "tuned"},
    {**GOOD, "provider": "auto"},
    {**GOOD, "provider": 1},
    {**GOOD, "compute": None},
    {**GOOD, "batch": 0},
    {**GOOD, "batch": True},
    {**GOOD, "batch": 2.5},
    {**GOOD, "streams": 10**9},
    {**GOOD, "more": 1},
    {"provider": "cpu"},
    None,
]


@pytest.mark.parametrize("choice", BAD, ids=str)
def test_a_choice_that_no_tuning_makes_is_refused(choice, chosen) -> None:
    rewritten(chosen, choice=GOOD)
    runtime.load(chosen, "tuned").close()
    rewritten(chosen, choice=choice)
    with pytest.raises(InputError, match="its choice is none that `bench --tune` makes"):
        runtime.load(chosen, "tuned")


@pytest.mark.parametrize(("field", "value"), [("provider", "quantum"), ("compute", "int3")])
def test_an_unknown_provider_or_type_is_refused(field, value, chosen) -> None:
    rewritten(chosen, choice={**GOOD, field: value})
    with pytest.raises(UsageError, match=value):
        runtime.load(chosen, "tuned")


def test_embed_takes_batch_and_streams_and_records_what_ran(chosen, pictures, tmp_path, capsys) -> None:
    rewritten(chosen, choice={**GOOD, "streams": 2})
    out = tmp_path / "store"
    assert main(["embed", str(chosen), str(pictures), "--out", str(out), "--provider", "tuned"]) == 0
    assert "tuned: cpu, fp32, batch 3, 2 streams\n" in capsys.readouterr().err
    origin = json.loads((out / "_store.json").read_text())
    assert '"provider": "cpu"' in json.dumps(origin)
    assert "tuned" not in json.dumps(origin)
    # So the same store goes on under the provider's own name.
    assert main(["embed", str(chosen), str(pictures), "--out", str(out), "--provider", "cpu"]) == 0


def test_a_loaded_model_runs_as_chosen(chosen) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 42, 42)).astype(np.float32)
    with runtime.load(chosen, "tuned") as model, runtime.load(chosen, "cpu") as same:
        assert model.session.name == same.session.name
        np.testing.assert_array_equal(model.embed(images), same.embed(images))


# The CPU


INTEL = "model name\t: A  CPU\nflags\t\t: fpu avx2 avx512f amx_bf16\nflags\t\t: of another core\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp i8mm bf16\n"


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [(INTEL, "A  CPU", ("avx2", "avx512f", "amx_bf16")), (ARM, "", ("asimdhp", "bf16", "i8mm")), ("", "", ())],
    ids=["intel", "arm", "unknown"],
)
def test_instructions_are_those_that_linux_names(text, name, expected, tmp_path, monkeypatch) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(instructions, "_CPUINFO", tmp_path / "cpuinfo")
    assert instructions.cpu_instructions() == expected
    assert instructions.cpu_name() == name or not name
