"""`python -m runtime cluster`: embeddings -> unit vectors -> k-means -> metrics -> picture -> files."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.commands import cluster_report, options
from runtime.errors import UsageError

if TYPE_CHECKING:
    from runtime.gallery import Cluster, Gallery
    from runtime.kmeans import Clustering
    from runtime.metrics import Metrics
    from runtime.store import Store

# Heavy imports come after parsing, in the function that needs them.

WHAT = "cluster embeddings by k-means"
EXAMPLES = """examples:
  %(prog)s embeddings/ --k 10 --out clusters/
  %(prog)s embeddings/ --k 10 --out clusters/ --labels folders"""

SUMMARY_FORMAT = 1
MAX_SEED = 2**32 - 1
"""What numpy's generator takes."""
_LISTED = 20
"""Clusters whose sizes are listed for people; the summary has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("embeddings", metavar="DIR", type=Path, help="folder that `embed` wrote")
    parser.add_argument("--k", metavar="K", type=int, required=True, help="number of clusters")
    parser.add_argument(
        "--out",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder for labels.parquet, centroids.npy, clusters.png and summary.json; made if need be",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="same seed, same clusters, on one machine (default: %(default)s)"
    )
    parser.add_argument(
        "--labels",
        choices=["folders"],
        help="score the clusters (ACC, NMI, ARI), the name of an image's folder being its class",
    )
    options.add_images_root(parser, "where the images were moved since they were embedded")
    cluster_report.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Cluster the embeddings in `arguments.embeddings` into `arguments.out`; gives the exit code.

    Raises:
        UsageError: an option has no meaning for these embeddings.
        InputError: there are no embeddings, or they can't be clustered.
        OutputFileError: the results can't be written.
    """
    folder, out, k, seed = arguments.embeddings, arguments.out, arguments.k, arguments.seed
    if k < 1:
        raise UsageError(f"--k {k}: must be 1 or more")
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed {seed}: must be from 0 to {MAX_SEED}")
    cluster_report.check(arguments)
    started = time.monotonic()
    from runtime import cluster_output, gallery, kmeans, metrics
    from runtime.sources import location
    from runtime.store import Store
    from runtime.store.moved import Moved

    def say(line: str) -> None:
        if not arguments.quiet:
            sys.stderr.write(f"{line}\n")

    store = Store(folder)
    if not store.complete:
        say(f"{folder} is of a run that has not ended: clustering the {len(store):,} embeddings that are there")
    embeddings = store.read()
    roots, paths = embeddings.roots, embeddings.paths
    moved = Moved.parse(arguments.images_root, list(dict.fromkeys(roots)))
    points = kmeans.normalize_rows(embeddings.vectors, lambda row: location(roots[row], paths[row]))
    del embeddings  # as large as the points
    kmeans.check_k(points, k)
    with cluster_output.output_folder(out, folder) as work:
        say(f"clustering {len(points):,} embeddings of width {points.shape[1]} into {k:,}")
        clustering = kmeans.cluster(points, k, seed)
        scores = classes = None
        if arguments.labels == "folders":
            classes = metrics.folder_classes(roots, paths)
            scores = metrics.score(classes, clustering.labels, k)
        say("drawing the most central images")
        picture = gallery.draw_gallery(_rows(clustering, [moved.now(root) for root in roots], paths))
        summary = _summary(clustering, scores, picture, store, seed)
        summary = cluster_output.publish_results(out, work, roots, paths, clustering, picture.png, summary)
    _report_oddities(picture, scores, say)
    if arguments.report is not None:
        say("writing the report")
        line = cluster_report.write(
            arguments,
            store,
            points,
            clustering.labels,
            lambda row: (moved.now(roots[row]), paths[row]),
            summary,
            centroids=clustering.centroids,
            classes=classes,
            seconds=time.monotonic() - started,
        )
        say(line)
    sys.stdout.write(_as_json(summary) if arguments.json else _as_text(summary, out))
    return 0


def _rows(clustering: Clustering, roots: Sequence[str], paths: Sequence[str]) -> list[Cluster]:
    """What the picture shows of each cluster."""
    from runtime.gallery import MAX_IMAGES, Cluster

    return [
        Cluster(number, len(members), [(roots[row], paths[row]) for row in members[:MAX_IMAGES]])
        for number, members in enumerate(clustering.members())
    ]


def _summary(
    clustering: Clustering, scores: Metrics | None, picture: Gallery, store: Store, seed: int
) -> dict[str, Any]:
    """Everything in `summary.json` but the files' hashes."""
    k, width = clustering.centroids.shape
    return {
        "format": SUMMARY_FORMAT,
        "k": k,
        "seed": seed,
        "n": len(clustering.labels),
        "width": width,
        "inertia": clustering.inertia,
        "iterations": clustering.iterations,
        "sizes": clustering.sizes.tolist(),
        "metrics": None
        if scores is None
        else {
            "classes_from": "folders",
            "acc": scores.acc,
            "nmi": scores.nmi,
            "ari": scores.ari,
            "classes": list(scores.classes),
            "class_of_cluster": list(scores.class_of_cluster),
        },
        "picture": {
            "clusters": picture.clusters,
            "images": picture.images,
            "unreadable": len(picture.unreadable),
        },
        "source": {"folder": str(store.folder.resolve()), "model_sha256": store.origin.get("model_sha256")},
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("itae", "numpy", "scikit-learn")}


def _report_oddities(picture: Gallery, scores: Metrics | None, say: Callable[[str], None]) -> None:
    from runtime.sources import location

    if picture.unreadable:
        first = location(*picture.unreadable[0])
        say(f"{len(picture.unreadable)} of the picture's images can't be read any more, the first: {first}")
    if scores is not None and len(scores.classes) == 1:
        say(f"all images lie in folders named {scores.classes[0]!r}: ACC, NMI and ARI say nothing")


def _as_json(summary: dict[str, Any]) -> str:
    import json

    return json.dumps(summary, indent=2) + "\n"


def _as_text(summary: dict[str, Any], out: Path) -> str:
    """The summary for people."""
    from runtime.cluster_output import LABELS, PICTURE
    from runtime.gallery import count

    n, sizes = summary["n"], summary["sizes"]
    lines = [
        f"{count(n, 'image')} in {count(summary['k'], 'cluster')} "
        f"(seed {summary['seed']}, inertia {summary['inertia']:.6g}, {count(summary['iterations'], 'iteration')})",
        "",
        "cluster      images   share",
    ]
    lines += [f"{number:<10,} {size:8,} {size / n:7.1%}" for number, size in enumerate(sizes[:_LISTED])]
    if rest := sizes[_LISTED:]:
        lines.append(f"{f'{len(rest):,} more':10} {sum(rest):8,} {sum(rest) / n:7.1%}")
    lines.append("")
    if (scores := summary["metrics"]) is not None:
        lines.append(
            f"ACC {scores['acc']:.4f}  NMI {scores['nmi']:.4f}  ARI {scores['ari']:.4f}  "
            f"(against {count(len(scores['classes']), 'folder name')})"
        )
    picture = summary["picture"]
    drawn = "" if picture["clusters"] == summary["k"] else f" (the first {picture['clusters']} clusters)"
    lines += [f"picture  {out / PICTURE}{drawn}", f"labels   {out / LABELS}"]
    return "\n".join(lines) + "\n"
