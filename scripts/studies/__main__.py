"""The command: open the data, do what is missing, print the table. `scripts/study --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.contract.console import Parser, run

SIZES = ("vits14", "vitb14", "vitl14", "vitg14")
DRY_SEEDS = 3
DRY_PER_CLASS = 4
DRY = "A dry run: small models of random weights, in one of which artifacts were planted, say nothing of DINOv2"
EPILOG = """\
Into DIR go study.html, study.json, table.md and study.log; the models; the embeddings; and for each data set a folder
with calibration.html and report.html, the pages of `calibrate` and `evaluate`. The same command again does what is
missing, and what has changed: weights, data, options. The paper's figures stand beside those of ViT-B. Its θ is not
known: the 1 % quantile of the key norms stands in for it.

exit code: 0 if everything was done, 1 if a part failed (the others are done, and the table says what is missing), 2 for
bad use"""


def parser() -> Parser:
    """The command line."""
    options = Parser(
        prog="scripts/study",
        description="Compare plain DINOv2, ITAE as `calibrate` recommends it, the paper's form of ITAE, and the model "
        "with registers, on labelled data, by the exporter and the runtime.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--size", choices=SIZES, default="vitb14", help="(default: %(default)s)")
    options.add_argument(
        "--data",
        metavar="DATA",
        nargs="+",
        action="extend",
        help="labelled data sets: NAME:PATH, as `python -m runtime evaluate --data` takes them, or a folder with a "
        "folder for each class",
    )
    options.add_argument("--out", metavar="DIR", type=Path, required=True, help="where everything goes, and is kept")
    what = "of the model without registers, as the exporter takes them (default: auto, from the hub)"
    options.add_argument("--weights", metavar="W", default="auto", help=what)
    what = "of the model with registers (default: auto)"
    options.add_argument("--reg-weights", metavar="W", default="auto", help=what)
    options.add_argument(
        "--limit", metavar="N", type=int, help="so many images of a data set, each class with its share"
    )
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    options.add_argument("--seeds", metavar="N", type=int, help="clusterings of each model (default: 10; a dry run: 3)")
    options.add_argument("--json", action="store_true", help="print study.json instead of the table")
    options.add_argument(
        "--dry-run",
        action="store_true",
        help="the same with small models in which artifacts were planted, and pictures made for them; takes minutes",
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return run("study", lambda: _study(given))


def _study(argv: Sequence[str]) -> int:
    given = parser().parse_args(argv)
    _check(given)
    from runtime.contract.atomic import alone_in, cannot_write

    out = given.out.absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    with alone_in(out, "study"):
        return _run(given, argv, out)


def _run(given: argparse.Namespace, argv: Sequence[str], out: Path) -> int:
    from runtime.contract.atomic import write_atomically
    from runtime.contract.errors import CheckError
    from runtime.evaluation.datasets import open_dataset
    from scripts.studies import presentation, study
    from scripts.studies.commands import as_processes

    starter = ["-m"]
    data = [folder_or_name(text) for text in given.data or []]
    size, weights, registers = given.size, given.weights, given.reg_weights
    seeds, remarks = given.seeds or 10, []
    if given.dry_run:
        from scripts.studies import small

        starter = ["-m", small.__name__]
        remarks = [DRY]
        say(DRY)
        size, seeds = small.SMALL.name, given.seeds or DRY_SEEDS
        weights, registers, pictures = small.plant_both(out / "planted", DRY_PER_CLASS)
        data = [f"folder:{pictures}"]
    datasets = [open_dataset(text) for text in data]
    settings = study.Settings(size, weights, registers, given.device, seeds, given.limit)
    found = study.run(settings, datasets, out, as_processes(out / "study.log", starter), say)
    found.remarks += remarks
    if not found.datasets:
        raise CheckError(f"nothing could be evaluated: {found.failures[0].what}: {found.failures[0].reason}")
    data_json = presentation.to_bytes(presentation.as_json(found, out))
    table = presentation.as_markdown(found)
    write_atomically(out / "study.json", data_json)
    write_atomically(out / "table.md", table.encode())
    presentation.write_page(found, out, argv)
    say(f"{out / 'study.html'}")
    print((data_json.decode() if given.json else table), end="")
    return 1 if found.failures else 0


def folder_or_name(text: str) -> str:
    """NAME:PATH, where a folder alone may be given."""
    return f"folder:{text}" if Path(text).is_dir() else text


def _check(given: argparse.Namespace) -> None:
    from runtime.contract.errors import UsageError

    if given.dry_run:
        if given.data or given.weights != "auto" or given.reg_weights != "auto":
            raise UsageError("--dry-run makes its own data and weights: drop --data, --weights and --reg-weights")
    elif not given.data:
        raise UsageError("--data DATA is needed, or --dry-run")
    for name in ("limit", "seeds"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: must be 1 or more")


def say(line: str) -> None:
    """Show a line of progress."""
    print(f"study: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
