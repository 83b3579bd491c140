"""`python -m exporter --onnx FOREIGN.onnx --out X.onnx`: ITAE in an ONNX file that somebody else made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from exporter.command_line import export_parser, run_export
from exporter.declaration import declared
from exporter.foreign.request import CHECKS, ENGINE, PICTURES, WHAT, ForeignSpec
from exporter.method_arguments import Method, remarks
from exporter.methods.itae.options import GROUP as ITAE
from exporter.steps import Progress
from runtime.contract.errors import UsageError

EPILOG = """\
The new file takes and gives what the old one does, by the same names, in the same order and types; only what the
softmax of the chosen layers reads is changed. It is compared with the old one and ITAE in numpy, on every export.
`python -m exporter inspect FOREIGN.onnx` shows what is in a file, and why it would be refused.
"""


def parser() -> argparse.ArgumentParser:
    """The parser; its defaults are those of `ForeignSpec` and `ItaeConfig`."""
    return export_parser(
        "Put ITAE (Inference-Time Attention Engineering) into the ONNX file of any vision transformer.",
        EPILOG,
        (WHAT, PICTURES, ITAE, ENGINE, CHECKS),
        {ForeignSpec: ("input",)},
        plain=declared(ForeignSpec)["itae"].option.help,
    )


def main(argv: Sequence[str]) -> int:
    """Run the command; gives its exit code."""

    def checked_parser() -> argparse.ArgumentParser:
        if any(one == "--input" or one.startswith("--input=") for one in argv):
            raise UsageError("--input is for --size and --model: the inputs of somebody else's file stay as they are")
        return parser()

    return run_export(checked_parser, argv, _export)


def _export(a: argparse.Namespace, method: Method, progress: Progress) -> list[str]:
    options = {name: getattr(a, name) for name in declared(ForeignSpec) if name not in ("itae", "calibration", "input")}
    spec = ForeignSpec(**options, itae=method.itae, calibration=method.calibration)
    for remark in remarks(a, method):
        progress.note(remark)
    from exporter.foreign import delivered, delivery  # onnx and ONNX Runtime: not for --help
    from exporter.foreign.own_manifest import with_own_manifest

    return delivered.summary(delivery.deliver(with_own_manifest(spec, progress), progress))
