"""`python -m exporter --onnx FOREIGN.onnx --out X.onnx`: ITAE in an ONNX file that somebody else made."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.declaration import add_options, declared, given
from exporter.foreign.request import CHECKS, ENGINE, PICTURES, WHAT, ForeignSpec
from exporter.methods.itae.options import GROUP as ITAE
from exporter.methods.itae.options import ItaeConfig
from exporter.steps import Progress
from runtime.contract.console import Parser, add_loudness, add_threads, program_name, run
from runtime.contract.errors import UsageError
from runtime.contract.machine import limited_threads

if TYPE_CHECKING:
    from exporter.calibration.recommendation import Recommendation

EPILOG = """\
The new file takes and gives what the old one does, by the same names, in the same order and types; only what the
softmax of the chosen layers reads is changed. It is compared with the old one and ITAE in numpy, on every export.
`python -m exporter inspect FOREIGN.onnx` shows what is in a file, and why it would be refused.
"""


def parser() -> argparse.ArgumentParser:
    """The parser; its defaults are those of `ForeignSpec` and `ItaeConfig`."""
    p = Parser(
        prog=program_name("exporter"),
        description="Put ITAE (Inference-Time Attention Engineering) into the ONNX file of any vision transformer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups = {heading: p.add_argument_group(heading) for heading in (WHAT, PICTURES, ITAE, ENGINE, CHECKS)}
    add_options(ForeignSpec, groups)
    add_options(ItaeConfig, groups, fill=False)
    groups[ITAE].add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="take the options of ITAE from a file of `calibrate --onnx`; options that are given win",
    )
    add_threads(groups[CHECKS])
    add_loudness(groups[CHECKS], "details, and tracebacks of errors")
    return p


def main(argv: Sequence[str], read: Callable[[Path], Recommendation]) -> int:
    """Run the command; gives its exit code. `read` reads the file that `--config` names."""

    def body() -> int:
        a = parser().parse_args(list(argv))
        options = {name: getattr(a, name) for name in declared(ForeignSpec) if name not in ("itae", "calibration")}
        found = None if a.config is None else read(a.config)
        itae = ItaeConfig(**given(ItaeConfig, a)) if found is None else found.merged(given(ItaeConfig, a))
        if itae is None:
            raise UsageError(f"--config {a.config}: recommends nothing, so the file stays as it is: use {a.onnx}")
        spec = ForeignSpec(**options, itae=itae, calibration=None if found is None else found.record)
        from exporter.foreign import delivered, delivery  # onnx and ONNX Runtime: not for --help

        progress = Progress(quiet=a.quiet, verbose=a.verbose)
        with limited_threads(a.threads):
            result = delivery.deliver(spec, progress)
        if not a.quiet:
            print("\n".join(delivered.summary(result)))  # noqa: T201
        return 0

    return run("exporter", body, verbose=lambda: "--verbose" in argv)
