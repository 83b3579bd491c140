"""The arguments that choose the method: the options of ITAE, a preset, a calibration's file, or none at all."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from exporter.calibration.recommendation import NOTHING, Recommendation, read
from exporter.declaration import add_options, declared, given
from exporter.methods.itae.options import GROUP as ITAE
from exporter.methods.itae.options import PRESETS, ItaeConfig
from runtime.contract.errors import UsageError
from runtime.contract.manifest import Calibration


@dataclass(frozen=True)
class Method:
    """The method against artifacts, as the arguments choose it."""

    itae: ItaeConfig | None
    """None: the plain model."""
    recommendation: Recommendation | None = None
    """The content of the file that `--config` names; None if none was given."""
    calibration: Calibration | None = None
    """The calibration that `itae` was taken from, for the manifest."""


def add_method(group: argparse._ArgumentGroup, plain: str) -> None:
    """Declare the arguments; `plain` says in words what `--no-itae` gives."""
    add_options(ItaeConfig, {ITAE: group}, fill=False)
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="paper: the paper's own form, that is --layers last --side low --attenuate min with a --threshold "
        "absolute:θ of yours, and --source key, since the paper's is not known; options that are given win",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="take the options of ITAE from a file of `python -m exporter calibrate`; options that are given win",
    )
    group.add_argument("--no-itae", action="store_true", help=plain)


def method_of(a: argparse.Namespace) -> Method:
    """The method that parsed arguments choose.

    Raises:
        UsageError: a value means nothing, or two contradict each other.
    """
    if a.config is None:
        return Method(_itae(a))
    if a.preset is not None:
        raise UsageError(f"--config contradicts --preset {a.preset}: drop either")
    found = read(a.config)
    return Method(_itae(a), found) if a.no_itae else Method(found.merged(given(ItaeConfig, a)), found, found.record)


def remarks(a: argparse.Namespace, method: Method) -> list[str]:
    """The options that were taken in place of the preset's or the calibration's, a line each."""
    if method.recommendation is not None and not a.no_itae:
        return _remarks_on(a, method.recommendation)
    if a.preset is None:
        return []
    wanted = PRESETS[a.preset]
    flags = declared(ItaeConfig)
    found = [
        f"--preset {a.preset}: {flags[name].flag} {value} is taken in place of {wanted[name]}"
        for name, value in given(ItaeConfig, a).items()
        if name in wanted and value != wanted[name]
    ]
    if not a.threshold.startswith("absolute:"):
        found.append(f"--preset {a.preset}: --threshold {a.threshold} is taken in place of absolute:θ")
    return found


def _remarks_on(a: argparse.Namespace, found: Recommendation) -> list[str]:
    flags, options = declared(ItaeConfig), given(ItaeConfig, a)
    if found.options is None:
        return [f"--config {a.config}: {NOTHING}"] if not options else [f"--config {a.config}: not taken: {NOTHING}"]
    return [
        f"--config {a.config}: {flags[name].flag} {value} is taken in place of {found.options.get(name, 'none')}"
        for name, value in options.items()
        if value != found.options.get(name)
    ]


def _itae(a: argparse.Namespace) -> ItaeConfig | None:
    options = given(ItaeConfig, a)
    if a.no_itae:
        flags = [declared(ItaeConfig)[name].flag for name in options] + ["--preset"] * (a.preset is not None)
        if flags:
            raise UsageError(f"--no-itae contradicts {', '.join(flags)}: drop either")
        return None
    if a.preset is None:
        return ItaeConfig(**options)
    if "threshold" not in options:
        raise UsageError(f"--preset {a.preset} needs --threshold absolute:θ: the paper sets θ for each data set")
    base = dict(PRESETS[a.preset])
    if options["threshold"].startswith("positions:"):  # looks at no norm
        del base["source"], base["side"]
    return ItaeConfig(**{**base, **options})
