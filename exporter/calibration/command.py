"""`python -m exporter calibrate`: the user's images -> recommended options of ITAE, as JSON, and a report."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.calibration.recommendation import NOTHING, check_target, to_json
from exporter.declaration import add_options, declared
from exporter.foreign.request import ForeignSpec
from exporter.options import ExportSpec
from runtime.contract.argument_types import shown
from runtime.contract.atomic import cannot_write, write_atomically
from runtime.contract.console import Parser, add_loudness, add_threads, count, run, text
from runtime.contract.errors import BackendError, OutputFileError, UsageError, plain
from runtime.contract.machine import limited_threads
from runtime.images.options import add_image_column, add_selection, add_sixteen_bit

if TYPE_CHECKING:
    from exporter.calibration.blocks import Stack
    from exporter.calibration.subject import Subject
    from exporter.calibration.work import Result
    from exporter.intake import Intake
    from exporter.steps import Progress
    from runtime.contract.manifest import Preprocessing

LIMIT = 2000
"""Images that are looked at unless the user says otherwise."""
OF_OURS = ("size", "weights", "image_size", "fit", "pos_embed")
"""Options of the export that say which model and how pictures are brought to it."""
OF_A_FILE = (
    "onnx", "embedding", "pooling", "prefix_tokens", "fix_input", "image_size", "mean", "std", "resize_to", "fit",
    "preprocessor",
)  # fmt: skip
"""The same for somebody else's file."""
SEEDS = 5
"""Seeds of k-means, with --labels."""
NEXT_TO_NOTHING = 1e-4
"""1 - cosine to the plain embedding below which the options are said to change next to nothing."""
EXAMPLES = """examples:
  %(prog)s --size vitb14 --images photos/ --out itae.json --report itae.html
  %(prog)s --size vits14 --weights own.pth --images train/ --labels folders --out itae.json
  %(prog)s --size vitb14 --images photos/ --exclude 'thumbs/' --device cuda --out itae.json
  python -m exporter --config itae.json --size vitb14 --out itae.engine
  %(prog)s --onnx theirs.onnx --preprocessor preprocessor_config.json --images photos/ --out itae.json
  python -m exporter --config itae.json --onnx theirs.onnx --out itae.onnx

One half of the images chooses the options, by the norms of their patches and the CLS token's attention, never by
labels. The other half reports what these options and others do. Where no patches stand apart, the recommendation is
null, and an export with that file is plain DINOv2.

exit code: 0, also for a recommendation of nothing; 1 if the model gave NaN; 2 for bad use"""


def parser(*, foreign: bool = False) -> argparse.ArgumentParser:
    """The parser of the command, for a model of ours or somebody else's file."""
    p = Parser(
        prog="python -m exporter calibrate",
        description="Look for artifacts in images, and recommend options of ITAE.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = p.add_argument_group("what to look at")
    what.add_argument(
        "--images",
        metavar="IMAGES",
        nargs="+",
        required=True,
        type=text,
        help="files, folders, lists, tars, parquet, URLs, or -, as `python -m runtime embed` takes them",
    )
    add_selection(what)
    add_image_column(what)
    add_sixteen_bit(what)
    if foreign:
        add_options(ForeignSpec, {"": what}, only=OF_A_FILE)
    else:
        add_options(ExportSpec, {"": what}, only=OF_OURS)
        what.add_argument("--onnx", metavar="FILE", help="somebody else's ONNX file, in place of --size and --weights")
    what.add_argument(
        "--labels",
        choices=["folders"],
        help="an image's class is the folder it lies in: NMI, ACC and ARI are reported for each setting",
    )
    what.add_argument(
        "--limit", metavar="N", type=_positive, default=LIMIT, help=f"images, drawn at random (default: {LIMIT:,})"
    )
    what.add_argument("--seed", metavar="N", type=_whole, default=0, help="of the draw (default: 0)")
    made = p.add_argument_group("output")
    made.add_argument("--out", metavar="FILE", type=Path, required=True, help="X.json: the recommendation")
    made.add_argument("--report", metavar="FILE", type=Path, help="X.html: a page that shows what was found")
    made.add_argument("--json", action="store_true", help="print the recommendation and its figures as JSON")
    made.add_argument("--device", metavar="D", type=_device, default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    made.add_argument("--batch", metavar="N", type=_positive, default=8, help="images to run at a time (default: 8)")
    add_threads(made)
    add_loudness(made, "tracebacks of errors")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command; gives its exit code."""

    def body() -> int:
        if any(one == "--model" or one.startswith("--model=") for one in argv):
            raise UsageError(
                "calibrate --model: export the model once by --model NAME --no-itae --out plain.onnx, calibrate that "
                "file by `calibrate --onnx plain.onnx`, and give the --config to --model"
            )
        is_foreign = any(one == "--onnx" or one.startswith("--onnx=") for one in argv)
        arguments = parser(foreign=is_foreign).parse_args(argv)
        with limited_threads(arguments.threads):
            return _calibrate(arguments, argv)

    return run("exporter", body, verbose=lambda: "--verbose" in argv)


def _calibrate(a: argparse.Namespace, argv: Sequence[str]) -> int:
    spec: ExportSpec | ForeignSpec
    if a.onnx is None:
        spec = ExportSpec("calibrated.onnx", **{name: getattr(a, name) for name in OF_OURS})
    else:
        spec = ForeignSpec(out="calibrated.onnx", **{name: getattr(a, name) for name in OF_A_FILE})
        if a.device != "cpu":
            raise UsageError(f"--device {a.device}: ONNX Runtime runs somebody else's file on the CPU here: take cpu")
    _check_targets(a)
    from exporter.calibration.work import LEAST, Calibration
    from exporter.intake import Intake
    from exporter.steps import Progress
    from runtime.contract.progress import progress as progress_of
    from runtime.images.decode import quiet_pillow
    from runtime.sources import Columns, Selection, open_sources

    if a.limit < LEAST:
        raise UsageError(f"--limit {a.limit}: a calibration needs at least {LEAST} images")
    _check_device(a.device)
    sources = open_sources(a.images, selection=Selection.from_arguments(a), columns=Columns(a.image_column))
    steps = Progress(quiet=a.quiet)
    with tempfile.TemporaryDirectory(prefix="itae-") as folder:
        blocks, subject, how, batch = _loaded(spec, a, Path(folder), steps)
        intake = Intake(sources, how, a.limit, a.seed, batch, a.sixteen_bit)
        start = time.monotonic()
        with quiet_pillow(), progress_of(intake.total(), io.StringIO() if a.quiet else None) as bar:
            work = Calibration(blocks, intake, a.device, lambda done: bar.show(done, 0, len(intake.failed)))
            result = work.run(labels=a.labels is not None, seeds=SEEDS)
    return _write(a, argv, subject, intake, result, time.monotonic() - start)


def _loaded(
    spec: ExportSpec | ForeignSpec, a: argparse.Namespace, folder: Path, steps: Progress
) -> tuple[Stack, Subject, Preprocessing, int]:
    """The model in blocks, what it is, how pictures are brought to it, and how many at a time."""
    from exporter.calibration.subject import Subject

    if isinstance(spec, ExportSpec):
        from exporter.calibration.blocks import Blocks
        from exporter.pipeline import load

        with steps.step("load", f"{spec.backbone.name} from {spec.weights}"):
            loaded = load(spec)
        for note in loaded.origin.notes:
            steps.note(note)
        origin = loaded.origin
        ours = Subject(
            spec.backbone.name, origin.source, origin.sha256, spec.height_and_width, spec.fit, spec.pos_embed,
            spec.facts.grid,
        )  # fmt: skip
        return Blocks(loaded.model.to(a.device)), ours, spec.preprocessing(), a.batch
    from exporter.calibration.foreign_blocks import ForeignBlocks
    from exporter.foreign.opening import prepare
    from exporter.foreign.own_manifest import with_own_manifest
    from exporter.foreign.stages import Stages

    spec = with_own_manifest(spec, steps)
    prepared = prepare(spec, folder, steps)
    stages, found = Stages(prepared), prepared.found
    if not stages.goes_on:
        steps.note(
            "the tokens that enter a layer were not found in all layers: residual norms are not looked at, and each "
            "setting is a whole pass"
        )
    assert found.image_size is not None
    how = spec.preprocessing(found.image_size)
    grid = found.grid if found.grid and found.grid[0] * found.grid[1] == stages.patches else (1, stages.patches)
    theirs = Subject(
        found.file.path.name, f"onnx:{found.file.path.name}", found.file.sha256, found.image_size, how.fit, None, grid
    )
    return ForeignBlocks(stages), theirs, how, stages.batch or a.batch


def _write(
    a: argparse.Namespace,
    argv: Sequence[str],
    subject: Subject,
    intake: Intake,
    result: Result,
    seconds: float,
) -> int:
    """Write the files and print what was found."""
    from exporter.calibration.findings import content

    found = content(result, subject, intake)
    data = to_json(found)
    if a.report is not None:
        from exporter.calibration.views import write_views

        made_by = shlex.join(["python", "-m", "exporter", "calibrate", *argv])
        write_views(a.report, result, subject, intake, found, (made_by, next_command(a)))
    write_atomically(a.out, data)
    if not a.quiet:
        first, *others = _lines(a, result, intake, seconds)
        sys.stderr.write("".join([f"{plain(first)}\n", *(f"  {plain(line)}\n" for line in others)]))
    if a.json:
        sys.stdout.write(json.dumps(json.loads(data), indent=2, ensure_ascii=False) + "\n")
    return 0


def _lines(a: argparse.Namespace, result: Result, intake: Intake, seconds: float) -> list[str]:
    """The findings in lines for people."""
    from exporter.calibration.findings import figures
    from exporter.calibration.scored import METRICS
    from runtime.sources.selection import as_line

    settings, plain_pass = result.seconds["settings"], result.seconds["plain pass"]
    relative = settings / max(plain_pass, 1e-9)
    lines = [
        f"{a.out}: {count(result.tally.seen, 'image')} to choose by, {result.reported:,} to report on, "
        f"{seconds:.1f} s; {len(result.trials)} settings took {relative:.2f} times a plain pass"
    ]
    if intake.failed:
        lines.append(f"{count(len(intake.failed), 'image')} can't be read; the first: {intake.first_failure()}")
    if intake.sources.skipped:
        lines.append(f"{as_line(intake.sources.skipped)}")
    if result.itae is None:
        return [*lines, NOTHING, result.reason]
    found = figures(result)
    lines += [
        f"ITAE: {_words(result)}",
        f"why: {result.reason}",
        f"effect: {found['flagged']:.2%} of the patches in {found['images_with_artifacts']:.0%} of the other images; "
        f"the CLS token's attention on them {found['attention_before']:.1%} -> {found['attention_after']:.1%}; "
        f"cosine to the plain embedding {found['cosine_to_plain']:.4f}",
    ]
    if found["cosine_to_plain"] > 1 - NEXT_TO_NOTHING:
        lines.append("note: these options change next to nothing in the embedding")
    if result.scores is not None:
        words = [f"{name.upper()} {found[f'{name}_plain']:.4f} -> {found[name]:.4f}" for name in METRICS]
        lines.append(f"labels: {', '.join(words)}")
    lines.append(f"next: {next_command(a)}")
    return lines


def next_command(a: argparse.Namespace) -> str:
    """The command that exports by the file."""
    options, names = (ExportSpec, OF_OURS) if a.onnx is None else (ForeignSpec, OF_A_FILE)
    words = ["--config", str(a.out)]
    for name in names:
        one, value = declared(options)[name], getattr(a, name)
        if name in ("size", "onnx") or value != one.default:
            words += [one.flag, "x".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(["python", "-m", "exporter", *words, "--out", "itae.engine" if a.onnx is None else "itae.onnx"])


def _words(result: Result) -> str:
    from exporter.calibration.work import as_options

    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in (as_options(result.itae) or {}).items())


def _check_targets(a: argparse.Namespace) -> None:
    """Refuse before the work what could not be written after it."""
    if a.out.suffix != ".json":
        raise UsageError(f"--out {a.out}: must end in .json")
    try:
        if not a.out.parent.is_dir():
            raise OutputFileError(f"can't write {a.out}: there is no folder {a.out.parent}; make it first")
    except OSError as error:
        raise cannot_write(a.out, error) from error
    check_target(a.out)
    if a.report is not None:
        from runtime.report import check_target as check_page

        check_page(a.report)


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    number = int(device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise BackendError(f"--device {device}: PyTorch finds {torch.cuda.device_count()} GPUs here; take cpu")


def _whole(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return int(text)
    raise argparse.ArgumentTypeError(f"{shown(text)}: give a whole number")


def _positive(text: str) -> int:
    if (number := _whole(text)) == 0:
        raise argparse.ArgumentTypeError("0: give a whole number above 0")
    return number


def _device(text: str) -> str:
    kind, colon, number = text.partition(":")
    if text == "cpu" or (kind == "cuda" and (not colon or (number.isascii() and number.isdigit() and len(number) < 4))):
        return text
    raise argparse.ArgumentTypeError(f"{shown(text)}: give cpu, cuda or cuda:N")
