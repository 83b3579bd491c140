"""The command: weights, pictures and the truth about them into one folder. `scripts/plant --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from runtime.contract.console import Parser, run

if TYPE_CHECKING:
    from scripts.planting.plan import Plan

SIZES = tuple(f"{size}{registers}" for size in ("vits14", "vitb14", "vitl14") for registers in ("", "_reg"))
MAX_PER_CLASS = 1000
MAX_SEEDS = 100
STRENGTHS = (1.0, 0.3, 0.15, 0.1, 0.07, 0.05, 0.03)
"""At 0.1 an artifact has 3 times the median norm."""


def parser() -> Parser:
    """The command line."""
    from scripts.planting.plan import Kind, Values

    options = Parser(
        prog="scripts/plant",
        description="Make a DINOv2 of random weights in which known patches are artifacts, and pictures with clear "
        "classes. Into FOLDER go weights.safetensors, for `python -m exporter --weights`; pictures/, a folder per "
        "class; truth.npz, with `names` (n,) of the pictures and `artifact` (n, P), whether each patch is an artifact.",
    )
    options.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="where everything goes")
    options.add_argument("--size", choices=SIZES, default="vits14", help="of the model (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of weights and pictures (default: %(default)s)")
    options.add_argument(
        "--kind",
        choices=get_args(Kind),
        default="place",
        help="which patches: the same corner of every picture, or flat patches (default: %(default)s)",
    )
    options.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="of the artifacts' norm, 0 to 1, which is 30 medians; 0: the unplanted model (default: %(default)s)",
    )
    options.add_argument(
        "--values",
        choices=get_args(Values),
        default="payload",
        help="what the last block takes from artifacts: something that isn't the picture's, or next to nothing "
        "(default: %(default)s)",
    )
    options.add_argument("--fade", action="store_true", help="let the norms fall again before the last block")
    options.add_argument(
        "--image-size", type=int, default=224, help="side in pixels of the model's input (default: %(default)s)"
    )
    options.add_argument(
        "--per-class", type=int, default=20, help="pictures of each of the 8 classes (default: %(default)s)"
    )
    options.add_argument(
        "--report",
        action="store_true",
        help="measure instead, both kinds, --seeds seeds from --seed on, and --strengths: FOLDER/table.md and "
        "FOLDER/strength.png; the same command goes on where it was stopped",
    )
    options.add_argument("--seeds", type=int, default=5, help="for --report (default: %(default)s)")
    options.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        metavar="S",
        default=STRENGTHS,
        help=f"for --report (default: {' '.join(f'{one:g}' for one in STRENGTHS)})",
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run("plant", lambda: _plant(argv))


def _plant(argv: Sequence[str] | None) -> int:
    given = parser().parse_args(argv)
    from exporter.models.architecture import architecture
    from runtime.contract.errors import UsageError
    from scripts.planting import write
    from scripts.planting.plan import Plan

    if given.seed < 0:
        raise UsageError(f"--seed {given.seed}: must be 0 or more")
    if not 1 <= given.per_class <= MAX_PER_CLASS:
        raise UsageError(f"--per-class {given.per_class}: must be from 1 to {MAX_PER_CLASS}")
    plan = Plan(
        architecture(given.size),
        given.seed,
        given.kind,
        given.strength,
        given.values,
        given.fade,
        given.image_size,
    )
    if given.report:
        return _report(given, plan)
    artifact = write.write(plan, given.out, given.per_class)
    share = f"{artifact.sum(axis=1).mean():.1f} of {artifact.shape[1]} patches a picture are artifacts"
    print(f"plant: {len(artifact)} pictures; {share}", file=sys.stderr)
    print(given.out)
    return 0


def _report(given: argparse.Namespace, plan: Plan) -> int:
    from runtime.contract.errors import UsageError
    from scripts.planting import report
    from scripts.planting.plan import Kind

    if not 1 <= given.seeds <= MAX_SEEDS:
        raise UsageError(f"--seeds {given.seeds}: must be from 1 to {MAX_SEEDS}")
    if not all(0 < one <= 1 for one in given.strengths):
        raise UsageError("--strengths: must be above 0 and at most 1; the unplanted model is measured in any case")
    seeds = range(given.seed, given.seed + given.seeds)
    plans = report.in_order(plan, get_args(Kind), seeds, given.strengths)
    report.measure(plans, given.per_class, given.out, lambda line: print(f"plant: {line}", file=sys.stderr, flush=True))
    print((given.out / "table.md").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
