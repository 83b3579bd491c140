"""`cluster --report`: what the command found, as a page to look at."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.commands import options, report_facts
from runtime.contract.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from runtime.clustering.choose_k import Curve
    from runtime.clustering.clusters import Clustering
    from runtime.clustering.points import StoreReader
    from runtime.contract.keys import Key
    from runtime.report import Artifacts
    from runtime.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --report and what only a report needs."""
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        type=options.path,
        help="write a page that opens offline: sizes, images of each cluster, a map, classes against clusters",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        type=options.path,
        help="for --report: a model with the outputs artifact_mask and artifact_norm (positions: artifact_mask), run "
        "on a few images to show what it flags",
    )
    options.add_provider(parser)


def check(arguments: argparse.Namespace) -> None:
    """Check, before the embeddings are read, that a report can be made.

    Raises:
        UsageError: --model without --report, or a model without the outputs that show artifacts.
        ManifestError, BackendError: the model is missing or altered, or can't run here.
        OutputFileError: the report can't be written there.
    """
    if arguments.report is None and arguments.model is not None:
        raise UsageError("--model is only for --report: give a FILE.html to write")
    for name, given in (("provider", arguments.provider != "auto"), ("compute", arguments.compute is not None)):
        if arguments.model is None and given:
            value = getattr(arguments, name)
            raise UsageError(f"--{name} {value} is for the --model of --report: give one, or leave it out")
    if arguments.report is None:
        return
    from runtime import load
    from runtime.commands.report_artifacts import check_outputs
    from runtime.contract.manifest import read_manifest
    from runtime.report import check_target

    check_target(arguments.report, to_be_made=arguments.out)
    if arguments.model is not None:
        check_outputs(read_manifest(arguments.model), str(arguments.model))
        with load(arguments.model, arguments.provider, compute=arguments.compute):
            pass  # an engine without its GPU, or a file of another hash, is told now and not after hours


def write(
    arguments: argparse.Namespace,
    reader: StoreReader,
    clustering: Clustering,
    key_of: Callable[[int], Key],
    summary: Mapping[str, Any],
    *,
    command: str,
    classes: Sequence[str] | None = None,
    curve: Curve | None = None,
    seconds: float | None = None,
) -> str:
    """Write the report to `arguments.report`, and give a line about it.

    Args:
        arguments: of the command.
        reader: of the embeddings as they were clustered; they are not held again, since by minibatch they never were.
        clustering: of the embeddings.
        key_of: gives the key of a row, under its root as it is now.
        summary: as in `summary.json`.
        command: the command, as it can be run again.
        classes: n classes, where they are known.
        curve: the scores of the k that were tried.
        seconds: how long the command took so far.

    Raises:
        ItaeError: the model can't be run, or the file can't be written.
    """
    from runtime import report
    from runtime.clustering.clusters import nearest_other
    from runtime.commands.report_clusters import count_confusion, describe_clusters
    from runtime.sources.at_hand import at_hand
    from runtime.store.origin import sixteen_bit_of

    store, labels = reader.store, clustering.labels
    other = nearest_other(reader.parts(), clustering)
    made = report.Report(
        title=f"Clusters of {store.path.resolve().name}",
        lead=f"{len(labels):,} images in {len(summary['sizes']):,} clusters",
        headlines=_headlines(labels, summary),
        facts=report_facts.facts(command, store, summary, seconds),
        notes=report_facts.notes(store),
        curve=None if curve is None else report.Curve(curve.ks, curve.silhouettes, curve.best),
        clusters=describe_clusters(clustering, other, key_of, classes=classes),
        map=report.draw_map(reader.sample, labels, key_of, classes=classes, seed=arguments.seed or 0),
        confusion=None if classes is None else count_confusion(labels, classes),
        artifacts=_artifacts(arguments, store, len(labels), key_of),
    )
    as_embedded = functools.partial(at_hand, sixteen_bit=sixteen_bit_of(store.origin))
    written = report.write_report(arguments.report, made, as_embedded)
    line = f"report {arguments.report}: {written.bytes / 1000:,.0f} kB, {written.images:,} images"
    return line + (f", {len(written.unreadable):,} of them can't be read any more" if written.unreadable else "")


def _headlines(labels: npt.NDArray[np.integer], summary: Mapping[str, Any]) -> list[Any]:
    from runtime.contract.labels import NOISE
    from runtime.report import Headline

    sizes = summary["sizes"]  # of --assign, some may be 0
    found = [
        Headline("images", f"{len(labels):,}"),
        Headline("clusters", f"{len(sizes):,}", f"{min(sizes):,} to {max(sizes):,} images" if sizes else ""),
    ]
    if noise := int((labels == NOISE).sum()):
        found.append(Headline("noise", f"{noise / len(labels):.1%}", f"{noise:,} images in no cluster"))
    if (scores := summary.get("metrics")) is not None:
        found += [
            Headline("ACC", f"{scores['acc']:.4f}", f"against {len(scores['classes']):,} classes"),
            Headline("NMI", f"{scores['nmi']:.4f}", "1 is perfect"),
            Headline("ARI", f"{scores['ari']:.4f}", "0 is chance"),
        ]
    return found


def _artifacts(arguments: argparse.Namespace, store: Store, n: int, key_of: Callable[[int], Key]) -> Artifacts | None:
    if arguments.model is None:
        return None
    from runtime import load
    from runtime.commands.report_artifacts import sample_artifacts
    from runtime.store.origin import sixteen_bit_of

    with load(Path(arguments.model), arguments.provider, compute=arguments.compute) as model:
        same = store.origin.get("model_sha256") == model.manifest.files.model.sha256
        note = "" if same else "This is not the model that made the embeddings."
        return sample_artifacts(
            model, n, key_of, seed=arguments.seed or 0, note=note, sixteen_bit=sixteen_bit_of(store.origin)
        )
