"""`scripts/study`: a dry run with planted weights, what a second run does, and what happens when parts fail."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import exporter.__main__
import runtime.__main__
from runtime.contract.errors import CheckError, InputError, UsageError
from runtime.evaluation.datasets import open_dataset
from scripts.studies import __main__ as command_line
from scripts.studies import commands, study
from scripts.studies.commands import as_processes
from scripts.studies.presentation import HEADER, PAPER, as_json, as_markdown, rows
from scripts.studies.study import MODELS, QUANTILE, Settings, theta_of

PACKAGES = {"exporter": exporter.__main__.main, "runtime": runtime.__main__.main}
HUB = "exporter: can't reach the Hugging Face hub (offline): give --weights a path"


def in_process(package: str, words: Sequence[str]) -> str:
    """A command without a process of its own, which would take seconds to start."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = PACKAGES[package](words)
    if code:
        raise CheckError(stderr.getvalue().strip().splitlines()[-1])
    return stdout.getvalue()


@pytest.fixture(scope="module")
def dry(tmp_path_factory, traced_once) -> Path:
    """The folder of a dry run."""
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "as_processes", lambda log, starter: in_process)
        assert command_line.main(["--dry-run", "--out", str(out)]) == 0
    return out


def test_a_dry_run_shows_that_itae_wins_back_what_artifacts_cost(dry):
    (found,) = json.loads((dry / "study.json").read_bytes())["datasets"]
    nmi = {one["model"]: one["nmi"]["mean"] for one in found["evaluations"] if one["normalisation"] == "raw"}
    assert list(nmi) == ["plain.onnx", "calibrated.onnx", "paper.onnx", "registers.onnx"]
    assert nmi["plain.onnx"] < 0.7 < nmi["calibrated.onnx"]
    assert nmi["registers.onnx"] > 0.8
    assert found["calibration"]["itae"]["threshold"].startswith("positions:")
    table = (dry / "table.md").read_text()
    assert table.startswith("A dry run: small models of random weights")
    for model in MODELS.values():
        assert table.count(f"| {model} | ") == 2  # as they are, and divided by their norm
    assert "θ = " in table
    page = (dry / "study.html").read_text()
    assert "A dry run: small models" in page
    assert all(model.replace("'", "&#x27;") in page for model in MODELS.values())
    for name in ("pictures/report.html", "pictures/calibration.html"):
        assert (dry / name).is_file()
        assert name in page


class Copies:
    """Commands that copy what a dry run has made; some of them fail."""

    def __init__(self, dry: Path) -> None:
        self.dry = dry
        self.calls: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.calibration: dict = {}

    def __call__(self, package: str, words: Sequence[str]) -> str:
        verb = words[0] if not words[0].startswith("-") else "export"
        target = Path(words[words.index("--out") + 1])
        what = f"export {target.stem}" if verb == "export" else verb
        if what in self.fail:
            raise self.fail[what]
        self.calls.append(what)
        made = {one.name: one for one in (*self.dry.glob("models/*"), *self.dry.glob("pictures/*"))}
        if verb == "evaluate":
            target.mkdir(exist_ok=True)
            summary = json.loads((made["evaluation"] / "summary.json").read_bytes())
            given = {Path(word).name for word in words if word.endswith(".onnx")}
            data = summary["datasets"][0]
            data["evaluations"] = [one for one in data["evaluations"] if one["model"] in given]
            data["comparisons"] = [one for one in data["comparisons"] if {one["model"], one["baseline"]} <= given]
            (target / "summary.json").write_text(json.dumps(summary))
        elif verb == "calibrate":
            found = json.loads(made["calibration.json"].read_bytes())
            target.write_text(json.dumps({**found, **self.calibration}))
        else:
            for suffix in (".onnx", ".onnx.json"):
                shutil.copy(made[f"{target.stem}{suffix}"], target.with_suffix(suffix))
        if "--report" in words:
            Path(words[words.index("--report") + 1]).write_text("a page")
        return ""

    def taken(self) -> list[str]:
        """The commands since the last time."""
        calls, self.calls = self.calls, []
        return calls


ALL = ["export plain", "export registers", "calibrate", "export calibrated", "export paper", "evaluate"]


@pytest.fixture
def case(dry, tmp_path):
    """A study of the dry run's pictures by stand-ins of the commands: `run(...)`, `commands`, `weights`."""
    return Case(dry, tmp_path)


class Case:
    def __init__(self, dry: Path, folder: Path) -> None:
        self.commands = Copies(dry)
        self.weights = folder / "weights.safetensors"
        self.weights.write_bytes(b"weights")
        self.out = folder / "out"
        self.out.mkdir()
        self.dataset = open_dataset(f"folder:{dry / 'planted/plain/pictures'}")
        self.said: list[str] = []

    def run(self, **changes) -> study.Study:
        settings = {"size": "vits14", "weights": str(self.weights), "registers_weights": "auto", "device": "cpu"}
        settings |= {"seeds": 3, "limit": None, **changes}
        return study.run(Settings(**settings), [self.dataset], self.out, self.commands, self.said.append)


def test_a_second_run_does_nothing_and_gives_the_same(case):
    first = case.run()
    assert case.commands.taken() == ALL
    again = case.run()
    assert case.commands.taken() == []
    assert as_json(again, case.out) == as_json(first, case.out)
    assert case.said[-1] == "[7/7] pictures: evaluate: as before"


@pytest.mark.parametrize("step", ALL)
def test_a_run_that_was_killed_goes_on_where_it_was(case, step):
    case.commands.fail = {step: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        case.run()
    assert case.commands.taken() == ALL[: ALL.index(step)]
    case.commands.fail = {}
    assert not case.run().failures
    assert case.commands.taken() == ALL[ALL.index(step) :]


def test_only_what_depends_on_a_change_is_done_again(case, dry, tmp_path):
    case.run()
    case.commands.taken()
    case.run(seeds=5)
    assert case.commands.taken() == ["evaluate"]
    case.run(seeds=5, registers_weights="hf:somebody/else")
    assert case.commands.taken() == ["export registers"]  # the stand-in's model is the same, so is the evaluation
    case.weights.write_bytes(b"others")
    case.run(seeds=5)
    assert case.commands.taken() == ALL[:-1]  # registers: they are `auto` again
    (case.out / "pictures/calibrated.onnx").unlink()
    case.run(seeds=5)
    assert case.commands.taken() == ["export calibrated"]
    (case.out / "pictures/evaluation/summary.json").write_text("{}")
    case.run(seeds=5)
    assert case.commands.taken() == ["evaluate"]
    more = tmp_path / "more"
    shutil.copytree(dry / "planted/plain/pictures", more / "pictures")
    shutil.copy(next((more / "pictures/0").iterdir()), more / "pictures/0/one-more.png")
    case.dataset = open_dataset(f"folder:{more / 'pictures'}")
    case.run(seeds=5)
    assert case.commands.taken() == ["calibrate", "evaluate"]


def test_without_the_registers_weights_it_goes_on_and_says_so(case):
    case.commands.fail = {"export registers": CheckError(HUB)}
    found = case.run()
    assert case.commands.taken() == [one for one in ALL if one != "export registers"]
    assert [(one.what, one.reason) for one in found.failures] == [("registers: export vits14_reg", HUB)]
    (one,) = found.datasets
    assert [row[0] for row in rows(one)[1:4]] == [MODELS[name] for name in ("plain", "calibrated", "paper")]
    assert f"- registers: export vits14_reg: {HUB}" in as_markdown(found)
    assert as_json(found, case.out)["failures"] == [{"what": "registers: export vits14_reg", "reason": HUB}]
    case.commands.fail = {}
    assert not case.run().failures
    assert case.commands.taken() == ["export registers", "evaluate"]


def test_without_the_plain_weights_registers_stand_alone(case):
    case.commands.fail = {"export plain": CheckError(HUB)}
    found = case.run()
    assert case.commands.taken() == ["export registers", "evaluate"]
    assert [row[0] for row in rows(found.datasets[0])[1:2]] == [MODELS["registers"]]
    assert case.said[-1].startswith("[7/7]")


def test_with_no_weights_at_all_nothing_is_evaluated(case):
    case.commands.fail = {"export plain": CheckError(HUB), "export registers": CheckError(HUB)}
    found = case.run()
    assert (case.commands.taken(), found.datasets, len(found.failures)) == ([], [], 2)


def test_where_calibrate_finds_nothing_the_table_says_as_plain(case):
    case.commands.calibration = {"itae": None, "reason": "no artifacts in these images"}
    found = case.run()
    assert case.commands.taken() == [one for one in ALL if one != "export calibrated"]
    assert rows(found.datasets[0])[2][:2] == [MODELS["calibrated"], "as plain"]
    assert "calibrate recommends nothing: no artifacts in these images" in as_markdown(found)


def test_the_papers_figures_stand_beside(case):
    (one,) = case.run().datasets
    assert not any(row[0] == PAPER for row in rows(one))
    figures = {"acc": 0.8449, "nmi": 0.8682, "ari": 0.7946, "backbone": "ViT-B/14", "comparable": False}
    with_paper = study.DatasetStudy(one.folder, one.calibration, one.theta, {**one.evaluation, "paper": figures})
    last = rows(with_paper)[-1]
    assert last[:4] == [PAPER, "0.8682", "0.8449", "0.7946"]
    assert len(last) == len(HEADER)


def test_theta_is_a_low_quantile_of_the_last_blocks_key_norms():
    def norms(layer: int, source: str, median: float) -> dict:
        return {"layer": layer, "source": source, "median": median, "quantiles_by_median": {QUANTILE: 0.8, "0.5": 1}}

    found = {"norms": [norms(layer, source, 10 * layer) for layer in (0, 1) for source in ("key", "value")]}
    found["norms"][2]["median"] = 5.0
    assert theta_of(found) == 4.0


def test_pictures_of_a_binary_data_set_are_written_for_calibrate(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = np.zeros((10_000, 3_073), np.uint8)
    records[:, 0] = np.repeat(np.arange(10), 1_000)
    records[:, 1] = np.arange(10_000) % 251
    (folder / "test_batch.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("".join(f"class {number}\n" for number in range(10)))
    dataset = open_dataset(f"cifar10:{folder}")
    study.write_pictures(dataset, 30, tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 30
    study.write_pictures(dataset, 20, tmp_path / "pictures")  # a second time
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 20
    assert study.folder_names([dataset, dataset]) == [f"cifar10-{dataset.identity[:8]}"] * 2
    assert study.folder_names([dataset]) == ["cifar10"]


def test_a_command_that_fails_gives_its_last_words_and_all_goes_to_the_log(tmp_path, capsys):
    run = as_processes(tmp_path / "log", ["-m"])
    assert run("json.tool", ["--help"]).startswith("usage:")
    with pytest.raises(CheckError, match=r"^exporter: unknown size 'vits15': choose one of"):
        run("exporter", ["--size", "vits15", "--out", "x.onnx"])
    assert "choose one of" in capsys.readouterr().err
    assert "choose one of" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data DATA is needed, or --dry-run"),
        (["--dry-run", "--data", "x"], "--dry-run makes its own data and weights"),
        (["--data", "x", "--seeds", "0"], "--seeds 0: must be 1 or more"),
        (["--data", "x", "--limit", "-1"], "--limit -1: must be 1 or more"),
        (["--data", "nothing-there"], "--data nothing-there: give NAME:PATH"),
        (["--data", "x", "--size", "vits14_reg"], "invalid choice"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, words, message):
    assert command_line.main(["--out", str(tmp_path / "new"), *words]) == UsageError.exit_code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_exits_with_1_if_a_part_failed(dry, tmp_path, capsys, monkeypatch):
    copies = Copies(dry)
    copies.fail = {"export registers": CheckError(HUB)}
    monkeypatch.setattr(commands, "as_processes", lambda log, starter: copies)
    pictures = str(dry / "planted/plain/pictures")
    words = ["--data", pictures, "--out", str(tmp_path), "--size", "vits14", "--weights", "random:0"]
    assert command_line.main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failures"][0]["reason"] == HUB
    assert HUB in (tmp_path / "study.html").read_text().replace("&#x27;", "'")
    copies.fail |= {"evaluate": InputError("damaged")}
    assert command_line.main([*words, "--seeds", "2"]) == 1
    assert "study: nothing could be evaluated: registers: export vits14_reg: " in capsys.readouterr().err
