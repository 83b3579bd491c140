"""The command line: what becomes of it, and what it says where it can't be understood."""

from __future__ import annotations

import ast
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import fields

import pytest

from exporter import onnx_command
from exporter.__main__ import main
from exporter.arguments import EXAMPLES, parser, to_spec
from exporter.foreign import inspection
from exporter.method_arguments import method_of, remarks
from exporter.methods.itae.options import ItaeConfig
from exporter.models.architecture import ARCHITECTURES
from exporter.options import ExportSpec
from runtime.contract.errors import UsageError

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "onnx_graphsurgeon", "tensorrt", "tensorrt_rtx", "safetensors")


def parse(*argv: str) -> ExportSpec:
    arguments = parser().parse_args(argv)
    return to_spec(arguments, method_of(arguments))


def test_out_alone_gives_the_defaults_of_the_python_call():
    assert parse("--out", "a.engine") == ExportSpec("a.engine")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--size", "vits14_reg"], {"size": "vits14_reg"}),
        (["--weights", "hf:someone/model@main"], {"weights": "hf:someone/model@main"}),
        (["--backend", "tensorrt-rtx"], {"backend": "tensorrt-rtx"}),
        (["--precision", "fp32"], {"precision": "fp32"}),
        (["--image-size", "518"], {"image_size": 518}),
        (["--image-size", "224x448"], {"image_size": (224, 448)}),
        (["--batch", "4"], {"batch": 4}),
        (["--batch", "1,2,3"], {"batch": (1, 2, 3)}),
        (["--batch", " 1, 2 ,3"], {"batch": (1, 2, 3)}),
        (["--no-itae"], {"itae": None}),
        (["--layers", "0,5,8-11"], {"itae": ItaeConfig(layers="0,5,8-11")}),
        (["--source", "value"], {"itae": ItaeConfig(source="value")}),
        (["--threshold", "zscore:2.5"], {"itae": ItaeConfig(threshold="zscore:2.5")}),
        (["--side", "low"], {"itae": ItaeConfig(side="low")}),
        (["--attenuate", "scale:0.1"], {"itae": ItaeConfig(attenuate="scale:0.1")}),
        (["--detect-layer", "8"], {"itae": ItaeConfig(detect_layer=8)}),
        (["--threshold", "positions:0,1,16-17"], {"itae": ItaeConfig(threshold="positions:0,1,16-17")}),
        (
            ["--attenuate", "none", "--outputs", "artifact_norm"],
            {"itae": ItaeConfig(attenuate="none"), "outputs": ("artifact_norm",)},
        ),
        (["--outputs", "embedding, artifact_mask"], {"outputs": ("embedding", "artifact_mask")}),
        (["--pooling", "cls+mean", "--normalize"], {"pooling": "cls+mean", "normalize": True}),
        (["--no-cls-only"], {"cls_only": False}),
        (["--input", "uint8"], {"input": "uint8"}),
        (["--pos-embed", "hf"], {"pos_embed": "hf"}),
        (["--keep-onnx", "b.onnx"], {"keep_onnx": "b.onnx"}),
        (["--workspace-mib", "512"], {"workspace_mib": 512}),
        (["--timing-cache", "cache"], {"timing_cache": "cache"}),
        (["--require-fusion"], {"require_fusion": True}),
        (["--hardware-compatibility", "ampere-plus"], {"hardware_compatibility": "ampere-plus"}),
        (["--version-compatible"], {"version_compatible": True}),
        (["--unfused"], {"unfused": True}),
        (["--parity-samples", "7"], {"parity_samples": 7}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_option_reaches_its_field(argv, expected):
    spec = parse("--out", "a.engine", *argv)
    assert spec == ExportSpec("a.engine", **expected)
    assert spec != ExportSpec("a.engine")


def test_every_field_of_the_spec_has_an_option():
    options = {action.dest for action in parser()._actions}
    assert {one.name for one in fields(ExportSpec)} - {"itae", "calibration"} <= options
    assert {one.name for one in fields(ItaeConfig)} <= options


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: --out"),
        (["--out"], "argument --out: expected one argument"),
        (["--out", "a.onnx", "stray"], "unrecognized arguments: stray"),
        (["--out", "a.onnx", "--sizes", "vitb14"], "unrecognized arguments: --sizes vitb14"),
        (["--out", "a.onnx", "--verb"], "unrecognized arguments: --verb"),
        (["--out", "a.onnx", "--precision", "int4"], "argument --precision: invalid choice: 'int4'"),
        (["--out", "a.onnx", "--precision", "int8"], "--precision int8 needs --calibrate-images"),
        (["--out", "a.onnx", "--source", "keys"], "argument --source: invalid choice: 'keys'"),
        (["--out", "a.onnx", "--side", "left"], "argument --side: invalid choice: 'left'"),
        (["--out", "a.onnx", "--backend", "trt"], "argument --backend: invalid choice: 'trt'"),
        (["--out", "a.onnx", "--input", "int8"], "argument --input: invalid choice: 'int8'"),
        (["--out", "a.onnx", "--pos-embed", "timm"], "argument --pos-embed: invalid choice: 'timm'"),
        (["--out", "a.onnx", "--image-size", "big"], "--image-size 'big': must be N or HxW"),
        (["--out", "a.onnx", "--image-size", "224x"], "--image-size '224x': must be N or HxW"),
        (["--out", "a.onnx", "--image-size", "1x2x3"], "--image-size '1x2x3': must be N or HxW"),
        (["--out", "a.onnx", "--image-size=-224"], "--image-size '-224': must be N or HxW"),
        (["--out", "a.onnx", "--image-size", "225"], "--image-size 225x225: each side must be a multiple of 14"),
        (["--out", "a.onnx", "--image-size", "٢٢٤"], "must be N or HxW"),
        (["--out", "a.onnx", "--image-size", "9" * 5000], "must be N or HxW"),
        (["--out", "a.onnx", "--batch", "1,2"], "--batch '1,2': must be N or MIN,OPT,MAX"),
        (["--out", "a.onnx", "--batch", "1,2,3,4"], "--batch '1,2,3,4': must be N or MIN,OPT,MAX"),
        (["--out", "a.onnx", "--batch", "1.5"], "--batch '1.5': must be N or MIN,OPT,MAX"),
        (["--out", "a.onnx", "--batch", "8,1,64"], "--batch 8,1,64: must be MIN,OPT,MAX"),
        (["--out", "a.onnx", "--parity-samples", "many"], "--parity-samples 'many': must be a whole number"),
        (["--out", "a.onnx", "--parity-samples", "0"], "--parity-samples 0: must be from 1 to 64"),
        (["--out", "a.onnx", "--workspace-mib", "1e3"], "--workspace-mib '1e3': must be a whole number"),
        (["--out", "a.onnx", "--outputs", "embedding,"], "--outputs '': must be one of embedding"),
        (["--out", "a.onnx", "--layers", "12"], "--layers 12: no layer 12"),
        (["--out", "a.onnx", "--threshold", "ratio:0.5"], "ratio needs a number λ > 1"),
        (["--out", "a.onnx", "--threshold", "absolute:30"], "an absolute threshold needs its side"),
        (["--out", "a.onnx", "--attenuate", "scale:1"], "scale needs a number α with 0 < α < 1"),
        (["--out", "a.onnx", "--no-itae", "--layers", "all"], "--no-itae contradicts --layers"),
        (["--out", "a.onnx", "--no-itae", "--outputs", "artifact_mask"], "artifact_mask needs ITAE"),
        (["--out", "a.onnx", "--keep-onnx", "b.onnx"], "--keep-onnx is for engines"),
        (["--out", "a.onnx", "--require-fusion"], "--require-fusion is for engines"),
        (["--out", "a.onnx", "--backend", "tensorrt"], "--backend tensorrt is for engines: --out is an ONNX file"),
        (
            ["--out", "a.onnx", "--hardware-compatibility", "same-compute-capability"],
            "--hardware-compatibility is for engines",
        ),
        (["--out", "a.onnx", "--version-compatible"], "--version-compatible is for engines"),
        (
            ["--out", "a.engine", "--require-fusion", "--unfused"],
            "--require-fusion and --unfused contradict each other",
        ),
        (["--out", "a.onnx", "--timing-cache", "c"], "--timing-cache is for engines"),
        (["--out", "a.txt"], "--out a.txt: must end in .engine or .plan"),
        (["--out", "a.onnx", "--size", "vith14"], "unknown size 'vith14': choose one of vits14"),
        (["--out", "a\nb.txt"], "--out a b.txt: must end in"),
    ],
    ids=lambda value: " ".join(value)[:60].replace("\n", "|") if isinstance(value, list) else "",
)
def test_what_means_nothing_is_one_line_and_exit_code_2(capfd, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = main(argv)
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("exporter: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [["--out", "a.onnx", "--no-itae", "--side", "high"], ["--out", "a.onnx", "--size", "x"]]
)
def test_the_parser_raises_and_does_not_exit(argv):
    with pytest.raises(UsageError):
        parse(*argv)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


MODULES_AFTER = """
import sys
from exporter.__main__ import main
try:
    code = main({argv!r})
except SystemExit as stopped:
    code = stopped.code
print()
print(repr((code, sorted(sys.modules))))
"""


def test_help_has_options_and_examples_and_loads_no_heavy_library():
    done = run_python(MODULES_AFTER.format(argv=["--help"]))
    assert done.stderr == ""
    text, last = done.stdout.rstrip("\n").rsplit("\n", 1)
    code, modules = ast.literal_eval(last)
    assert code == 0
    assert [name for name in HEAVY if name in modules] == []
    for action in parser()._actions:
        assert action.option_strings[-1] in text
        assert action.help
    assert all(size in " ".join(text.split()) for size in ARCHITECTURES)
    assert "python -m exporter --size vitb14 --out itae.engine" in text
    assert EXAMPLES in text


def test_bad_use_is_told_before_a_heavy_library_is_loaded():
    done = run_python(MODULES_AFTER.format(argv=["--out", "a.onnx", "--layers", "99"]))
    code, modules = ast.literal_eval(done.stdout.strip())
    assert code == 2
    assert [name for name in HEAVY if name in modules] == []
    assert "no layer 99" in done.stderr


def test_help_is_printed_where_the_terminal_knows_ascii_only():
    done = run_python(MODULES_AFTER.format(argv=["--help"]), PYTHONIOENCODING="ascii")
    assert done.stderr == ""
    assert r"\u03bb" in done.stdout  # λ


def examples() -> list[str]:
    lines = [line.strip() for line in EXAMPLES.splitlines()]
    # `calibrate` is a command of its own, and the file of --config is one that it makes.
    return [
        line
        for line in lines
        if line.startswith("python -m exporter ") and " calibrate " not in line and " --config " not in line
    ]


@pytest.mark.parametrize("line", examples())
def test_each_example_of_the_help_is_a_command_that_is_understood(line):
    argv = shlex.split(line)[3:]
    if argv[0] == "inspect":
        assert inspection.parser().parse_args(argv[1:]).model.name
    elif argv[0] == "--onnx":
        assert onnx_command.parser().parse_args(argv).out
    else:
        assert parse(*argv).path.name
    assert len(examples()) >= 4


def preset(*argv: str) -> tuple[ItaeConfig | None, list[str]]:
    """The options and the remarks of `--preset paper`."""
    arguments = parser().parse_args(["--out", "a.onnx", "--preset", "paper", *argv])
    method = method_of(arguments)
    return to_spec(arguments, method).itae, remarks(arguments, method)


def test_the_papers_own_form_has_a_name():
    spec = parse("--out", "a.onnx", "--preset", "paper", "--threshold", "absolute:30")
    assert spec.itae == ItaeConfig(layers="last", source="key", side="low", threshold="absolute:30", attenuate="min")
    assert spec == parse(
        *("--out", "a.onnx", "--layers", "last", "--source", "key"),
        *("--side", "low", "--threshold", "absolute:30", "--attenuate", "min"),
    )
    assert preset("--threshold", "absolute:30", "--attenuate", "min")[1] == []


@pytest.mark.parametrize(
    ("argv", "itae", "said"),
    [
        (["--source", "value"], ItaeConfig("last", "value", "absolute:2", "low"), ["--source value", "key"]),
        (["--side", "high"], ItaeConfig("last", "key", "absolute:2", "high"), ["--side high", "low"]),
        (["--threshold", "mad:4"], ItaeConfig("last", "key", "mad:4", "low"), ["--threshold mad:4", "absolute:θ"]),
        (
            ["--threshold", "positions:0"],
            ItaeConfig("last", threshold="positions:0"),
            ["--threshold positions:0", "absolute:θ"],
        ),
        (["--detect-layer", "3"], ItaeConfig("last", "key", "absolute:2", "low", detect_layer=3), None),
    ],
)
def test_what_is_given_wins_over_a_preset_and_is_said(argv, itae, said):
    got, lines = preset(*([] if "--threshold" in argv else ["--threshold", "absolute:2"]), *argv)
    assert got == itae
    assert lines == ([] if said is None else [f"--preset paper: {said[0]} is taken in place of {said[1]}"])


def test_the_remarks_of_a_preset_are_printed(capsys):
    argv = ["--out", "no-such-folder/a.onnx", "--preset", "paper", "--threshold", "absolute:2", "--side", "high"]
    assert main(argv) == 2
    assert "note: --preset paper: --side high is taken in place of low" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "paper"], "--preset paper needs --threshold absolute:θ: the paper sets θ for each data set"),
        (["--preset", "paper", "--no-itae"], "--no-itae contradicts --preset: drop either"),
        (["--no-itae", "--side", "both", "--layers", "all"], "--no-itae contradicts --layers, --side: drop either"),
    ],
)
def test_a_preset_that_can_not_be_is_refused(argv, message):
    with pytest.raises(UsageError) as refused:
        parse("--out", "a.onnx", *argv)
    assert message in str(refused.value)
