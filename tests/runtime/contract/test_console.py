"""The command as a user meets it: output, one line of error, exit code; and what the package may import."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from loaded import loaded_after

from runtime.__main__ import main
from runtime.contract import console
from runtime.contract.errors import plain
from runtime.contract.manifest import manifest_path, parity_path, read_manifest
from runtime.store import Store

COMMANDS = ("embed", "cluster", "search", "dedup", "export", "evaluate", "verify", "bench", "info", "doctor")


@pytest.fixture
def call(capfd):
    """Run the command in this process; give its exit code, stdout and stderr."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse, after --help
            code = end.code
        out, err = capfd.readouterr()
        return code, out, err

    return run


def assert_one_line(err: str) -> None:
    assert err.startswith("runtime: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


# embed


def test_embed_writes_embeddings_and_a_summary(call, tiny, pictures, tmp_path) -> None:
    code, out, err = call("embed", tiny, pictures, "--out", tmp_path / "out", "--batch", 3)
    assert (code, out) == (0, "")
    assert f"embedded 8 images into {tmp_path / 'out'}" in err
    assert len(Store(tmp_path / "out").read().paths) == 8


def test_embed_says_how_many_were_not_read_and_ends_well(call, tiny, pictures, tmp_path) -> None:
    (pictures / "cats" / "0.png").write_bytes(b"no picture")
    code, _, err = call("embed", tiny, pictures, "--out", tmp_path / "out")
    assert code == 0
    assert "embedded 7 images" in err
    assert "1 failed: see" in err
    assert json.loads((tmp_path / "out" / "_errors.jsonl").read_text())["path"] == "cats/0.png"


def test_embed_that_reads_nothing_exits_1(call, tiny, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    code, out, err = call("embed", tiny, tmp_path / "a.png", "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert_one_line(err)
    assert "none of 1 images could be embedded" in err


def test_embed_takes_a_single_file(call, tiny, pictures, tmp_path) -> None:
    code, _, _ = call("embed", tiny, pictures / "cats" / "0.png", "--out", tmp_path / "out")
    got = Store(tmp_path / "out").read()
    assert (code, got.paths) == (0, ["0.png"])
    assert got.roots == [str((pictures / "cats").resolve())]


def test_embed_refuses_an_empty_folder_and_makes_nothing(call, tiny, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = call("embed", tiny, tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 2
    assert_one_line(err)
    assert not (tmp_path / "out").exists()


BAD_USE = {
    "no subcommand": (
        [],
        "say what to do: embed, cluster, search, dedup, export, evaluate, triton, verify, bench, plan, info or doctor",
    ),
    "unknown subcommand": (["train"], "invalid choice: 'train'"),
    "no --out": (["embed", "{model}", "{pictures}"], "required: --out"),
    "no images": (["embed", "{model}", "--out", "{out}"], "required: IMAGES"),
    "missing model": (["embed", "nowhere.onnx", "{pictures}", "--out", "{out}"], "nowhere.onnx: no such model file"),
    "missing images": (["embed", "{model}", "nowhere", "--out", "{out}"], "nowhere: No such file"),
    "empty argument": (["embed", "{model}", "", "--out", "{out}"], "argument IMAGES: an empty path"),
    "batch 0": (["embed", "{model}", "{pictures}", "--out", "{out}", "--batch", "0"], "a batch of 0"),
    "batch no number": (["embed", "{model}", "{pictures}", "--out", "{out}", "--batch", "x"], "invalid int"),
    "provider": (["embed", "{model}", "{pictures}", "--out", "{out}", "--provider", "gpu"], "invalid choice"),
    "workers 0": (["embed", "{model}", "{pictures}", "--out", "{out}", "--workers", "0"], "a whole number above 0"),
    "max-pixels -1": (["embed", "{model}", "{pictures}", "--out", "{out}", "--max-pixels", "-1"], "whole number"),
    "max-failures 2": (["embed", "{model}", "{pictures}", "--out", "{out}", "--max-failures", "2"], "from 0 to 1"),
    "max-failures nan": (["embed", "{model}", "{pictures}", "--out", "{out}", "--max-failures", "nan"], "from 0 to 1"),
    "a GPU twice": (["embed", "{model}", "{pictures}", "--out", "{out}", "--devices", "0,0"], "each once"),
    "a GPU and the CPU": (["embed", "{model}", "{pictures}", "--out", "{out}", "--devices", "0,cpu"], "or cpu,cpu"),
    "a GPU on the CPU": (
        ["embed", "{model}", "{pictures}", "--out", "{out}", "--devices", "1", "--provider", "openvino"],
        "on the CPU: give `cpu`, or --provider cuda",
    ),
    "the CPU on a GPU": (
        ["embed", "{model}", "{pictures}", "--out", "{out}", "--devices", "cpu", "--provider", "cuda"],
        "on a GPU: give numbers of GPUs",
    ),
    "moved in no store": (
        ["embed", "{model}", "{pictures}", "--out", "{out}", "--images-root", "/a={pictures}"],
        "/a is no root of the store, which has none",
    ),
    "missing parent of --out": (["embed", "{model}", "{pictures}", "--out", "{out}/a/b"], "make it first"),
    "verify without a model": (["verify"], "required: MODEL"),
    "verify of no model": (["verify", "{pictures}"], "is a folder, expected a model"),
    "info of no model": (["info", "nowhere.engine"], "nowhere.engine: no such model file"),
    "junit in no folder": (["verify", "{model}", "--junit", "{out}/a/b.xml"], "make it first"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_USE.values(), ids=BAD_USE)
def test_bad_use_is_one_line_and_exit_2(arguments, message, call, tiny, pictures, tmp_path) -> None:
    places = {"model": tiny, "pictures": pictures, "out": tmp_path / "out"}
    code, out, err = call(*[argument.format(**places) for argument in arguments])
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--devices", "cpu"], "on a GPU: give numbers of GPUs"),
        (["--provider", "openvino"], "is an engine of tensorrt: it takes no provider 'openvino'"),
    ],
)
def test_embed_with_an_engine_refuses_what_only_onnx_takes(
    option, message, call, make_model, pictures, tmp_path
) -> None:
    engine = make_model(tmp_path / "model", "tiny.engine", builder="tensorrt", batch=(1, 4, 8))
    code, _, err = call("embed", engine, pictures, "--out", tmp_path / "out", *option)
    assert code == 2
    assert_one_line(err)
    assert message in err


def test_embed_refuses_a_model_without_embedding(call, make_model, pictures, tmp_path) -> None:
    path = make_model(tmp_path / "model", outputs=("patch_tokens",))
    code, _, err = call("embed", path, pictures, "--out", tmp_path / "out")
    assert code == 2
    assert "no output `embedding`" in err


@pytest.mark.parametrize("command", ["embed", "verify", "info"])
def test_altered_manifest_is_refused_by_every_command(command, call, tiny, pictures, tmp_path) -> None:
    text = manifest_path(tiny).read_bytes()
    manifest_path(tiny).write_bytes(text.replace(b'"query"', b'"value"').replace(b'"key"', b'"value"'))
    rest = [pictures, "--out", tmp_path / "out"] if command == "embed" else []
    code, out, err = call(command, tiny, *rest)
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert "does not match its own hash" in err


@pytest.mark.parametrize("place", [0, 2], ids=["before", "after"])
def test_verbose_shows_the_traceback(place, call, tmp_path) -> None:
    arguments = ["info", tmp_path / "nowhere.onnx"]
    arguments.insert(place, "--verbose")
    code, _, err = call(*arguments)
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("runtime: ")


def test_full_disk_is_one_line_and_leaves_the_older_set(call, tiny, pictures, tmp_path, monkeypatch) -> None:
    from pyarrow import parquet

    call("embed", tiny, pictures, "--out", tmp_path / "out")
    (pictures / "cats" / "0.png").rename(pictures / "cats" / "new.png")

    def full(*args, **rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    code, _, err = call("embed", tiny, pictures, "--out", tmp_path / "out")
    assert code == 2
    assert_one_line(err)
    assert "No space left on device" in err
    assert len(Store(tmp_path / "out").read().paths) == 8


def test_interrupt_is_one_line_and_exit_130(call, tiny, pictures, tmp_path, monkeypatch) -> None:
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.embedding.stream.load_item", interrupt)
    code, _, err = call("embed", tiny, pictures, "--out", tmp_path / "out")
    assert code == 130
    assert_one_line(err)
    assert not (tmp_path / "out").exists()


def test_an_engine_without_a_driver_is_refused_by_embed_and_verify(
    call, make_model, pictures, tmp_path, monkeypatch
) -> None:
    def no_driver(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", no_driver)
    path = make_model(tmp_path / "model", "tiny.engine", builder="tensorrt", batch=(1, 2, 4))
    for arguments in (["embed", path, pictures, "--out", tmp_path / "out"], ["verify", path]):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert_one_line(err)
        assert "there is no driver here" in err


# embed, then cluster


def test_embeddings_can_be_clustered(call, tiny, pictures, tmp_path) -> None:
    assert call("embed", tiny, pictures, "--out", tmp_path / "embeddings")[0] == 0
    code, _, _ = call("cluster", tmp_path / "embeddings", "--k", 2, "--out", tmp_path / "clusters")
    assert code == 0
    assert (tmp_path / "clusters" / "clusters.png").is_file()


# verify


def test_verify_prints_a_table_and_exits_0(call, tiny) -> None:
    code, out, err = call("verify", tiny)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(str(tiny))
    assert out.splitlines()[-1].strip() == "passed"


def test_a_model_whose_path_is_not_utf8_is_verified(call, make_model, tmp_path) -> None:
    code, out, err = call("verify", make_model(tmp_path / os.fsdecode(b"caf\xe9")))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].strip() == "passed"


def test_verify_json_is_alone_on_stdout(call, tiny) -> None:
    code, out, _ = call("verify", tiny, "--json")
    assert code == 0
    assert json.loads(out)["passed"] is True


@pytest.mark.parametrize("form", ["table", "json"])
def test_verify_of_a_model_that_is_off_exits_1_with_report_and_table(form, call, tiny, tmp_path, monkeypatch) -> None:
    limits = read_manifest(tiny).parity.limits.model_copy(update={"max_abs": 1e-12})
    changed = read_manifest(tiny)
    parity = changed.parity.model_copy(update={"limits": limits})
    manifest_path(tiny).write_bytes(changed.model_copy(update={"parity": parity}).to_json())
    arguments = ["verify", tiny, "--junit", tmp_path / "report.xml"] + (["--json"] if form == "json" else [])
    code, out, err = call(*arguments)
    assert code == 1
    assert_one_line(err)
    assert "over the limit 1e-12" in err
    assert json.loads(out)["passed"] is False if form == "json" else "FAILED" in out
    suite = ElementTree.parse(tmp_path / "report.xml").getroot().find("testsuite")
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")


def test_verify_reports_a_missing_golden_sample_as_an_error(call, tiny, tmp_path) -> None:
    parity_path(tiny).unlink()
    code, out, err = call("verify", tiny, "--junit", tmp_path / "report.xml")
    assert (code, out) == (2, "")
    assert_one_line(err)
    suite = ElementTree.parse(tmp_path / "report.xml").getroot().find("testsuite")
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")


# info


def test_info_prints_the_manifest(call, tiny) -> None:
    code, out, err = call("info", tiny)
    assert (code, err) == (0, "")
    assert out.encode() == manifest_path(tiny).read_bytes()


@pytest.mark.parametrize("stream", [1, 2], ids=["stdout", "stderr"])
def test_a_closed_stream_is_no_error_and_mixes_nothing(stream, tiny, pictures, tmp_path) -> None:
    command = ["embed", str(tiny), str(pictures), "--out", str(tmp_path / "out"), "--json"]
    run = f"import sys; from runtime.__main__ import main; sys.exit(main({command!r}))"
    shell = ["sh", "-c", f'exec "$0" "$@" {stream}>&-', sys.executable, "-c", run]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == "" if stream == 1 else json.loads(done.stdout)["embedded"] == 8
    assert len(Store(tmp_path / "out")) == 8
    assert "Traceback" not in done.stderr


# Help, and what is imported


def test_help_names_every_command_with_examples(call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in out
    assert "examples:" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_that_parse(command, call) -> None:
    from runtime.__main__ import parser

    code, out, _ = call(command, "--help")
    assert code == 0
    lines = out[out.index("examples:") :].splitlines()
    commands = [part for line in lines for part in line.partition(" #")[0].split("|")]
    examples = [part.split() for part in commands if f" {command} itae." in part or f" {command} emb" in part]
    assert examples
    for example in examples:
        parser().parse_args(example[example.index(command) :])


def test_version_is_printed(call) -> None:
    code, out, _ = call("--version")
    assert code == 0
    assert out.startswith("itae ")


def test_embedding_needs_no_torch(tiny, pictures) -> None:
    loaded = loaded_after(
        "from runtime import load\n"
        f"with load({str(tiny)!r}) as model: model.embed({str(pictures / 'cats' / '0.png')!r})"
    )
    assert "onnxruntime" in loaded
    assert loaded.isdisjoint(["torch", "transformers", "sklearn", "exporter"])


# what is common to all


@pytest.mark.parametrize("suffix", ["", ".json", ".parity.npz", ".data"])
def test_a_report_never_takes_the_place_of_a_file_of_the_model(suffix, call, tiny, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in tiny.parent.iterdir()}
    monkeypatch.chdir(tiny.parent)
    code, _, err = call("verify", tiny, "--junit", f"./{tiny.name}{suffix}")
    assert code == 2
    assert_one_line(err)
    assert "is a file of the model itself" in err
    assert {path.name: path.read_bytes() for path in tiny.parent.iterdir()} == before


def test_a_folder_in_a_models_place_is_named(call, tmp_path) -> None:
    code, _, err = call("info", tmp_path)
    assert code == 2
    assert_one_line(err)
    assert "is a folder, expected a model" in err


def test_info_refuses_an_altered_model(call, tiny) -> None:
    content = bytearray(tiny.read_bytes())
    content[len(content) // 2] ^= 1
    tiny.write_bytes(content)
    code, out, err = call("info", tiny)
    assert (code, out) == (2, "")
    assert "has not the SHA-256" in err


def test_verify_says_when_flags_are_no_output(call, make_model, tmp_path) -> None:
    for outputs, said in [(("embedding",), True), (("embedding", "artifact_mask"), False)]:
        path = make_model(tmp_path / str(said), outputs=outputs)
        code, out, _ = call("verify", path)
        assert code == 0
        assert ("artifact_mask is not an output of this model" in out) == said


def test_a_missing_package_is_one_line_and_exit_2(call, tiny, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "runtime.store_writer", raising=False)
    monkeypatch.delitem(sys.modules, "runtime.embedding.embedder", raising=False)
    code, _, err = call("embed", tiny, pictures, "--out", tmp_path / "out")
    assert code == 2
    assert_one_line(err)
    assert "needs the Python package pyarrow" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_one_line_and_exit_2(tiny) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "runtime", "info", str(tiny)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert_one_line(done.stderr)
    assert "No space left on device" in done.stderr


def test_sigterm_ends_embed_in_one_line_and_leaves_nothing(tiny, pictures, tmp_path) -> None:
    code = (
        "import os, signal, sys, time, runtime.embedding.stream\n"
        "first = iter([True])\n"
        "def load(*_):\n"
        "    if next(first, False): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(1)\n"
        "runtime.embedding.stream.load_item = load\n"
        "from runtime.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "embed", str(tiny), str(pictures), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert_one_line(done.stderr)
    assert not (tmp_path / "out").exists()


# --no-verify-hash


@pytest.mark.parametrize("command", ["info", "verify", "bench", "embed"])
def test_no_verify_hash_takes_a_swapped_model_and_warns(command, tiny, pictures, tmp_path, call) -> None:
    tiny.write_bytes(tiny.read_bytes().replace(b"average", b"averagf"))  # a name inside: the same model, another hash
    rest = {"embed": [pictures, "--out", tmp_path / "out"], "bench": ["--seconds", 0.1]}.get(command, [])
    code, _, err = call(command, tiny, *rest)
    assert code == 2
    assert "SHA-256" in err
    code, out, err = call(command, tiny, *rest, "--no-verify-hash")
    assert code == 0
    assert out or command == "embed"
    assert f"warning: --no-verify-hash: {tiny} is taken as it is; whoever could write it can run code as you\n" in err


def test_no_verify_hash_says_in_its_help_what_it_risks(call) -> None:
    _, out, _ = call("info", "--help")
    assert "executable code that runs as you" in " ".join(out.split())


def test_ctrl_c_while_the_commands_are_imported_is_one_line(tiny) -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'runtime.commands.info': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from runtime.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "info", str(tiny)], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert_one_line(done.stderr)


@pytest.mark.parametrize(
    "name",
    [
        "Żółć e\u0301.jpg",
        "猫の写真.jpg",
        "👨\u200d👩\u200d👧 ❤️ 👍🏽.jpg",
        "می\u200cخواهم.jpg",  # noqa: RUF001
        "क्\u200dष.jpg",
        "\U0001faea.jpg",
    ],
)
def test_names_of_any_language_are_told_as_they_are(name) -> None:
    assert plain(f"can't read {name}") == f"can't read {name}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\r\nb", "a b"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\x9b2J", r"a\x9b2J"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\u2066x\u2028y", r"\u2066x y"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_would_steer_a_terminal_is_told_as_an_escape(name, told) -> None:
    assert plain(name) == told


def test_a_broken_pipe_that_is_not_stdouts_is_an_error_in_words(capfd) -> None:
    def body() -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert console.run("runtime", body) == 2
    assert capfd.readouterr().err == "runtime: [Errno 32] Broken pipe\n"


def test_a_reader_of_stdout_that_has_gone_is_no_error() -> None:
    script = (
        "import sys\nfrom runtime.contract import console\nsys.exit(console.run('x', lambda: print('y' * 100000) or 0))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, timeout=100)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
