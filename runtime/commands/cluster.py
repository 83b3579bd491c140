"""`python -m runtime cluster`: embeddings -> points -> clusters -> metrics -> picture -> files."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from runtime.clustering import options as cluster_options
from runtime.clustering.options import AUTO, Settings
from runtime.commands import cluster_report, options
from runtime.commands.command_line import command_line
from runtime.contract.console import add_threads, text
from runtime.contract.errors import UsageError

if TYPE_CHECKING:
    from runtime.clustering.assign import OldClusters
    from runtime.clustering.clusters import Clustering
    from runtime.clustering.metrics import Metrics
    from runtime.clustering.points import StoreReader
    from runtime.clustering.results import Named
    from runtime.contract.keys import Key
    from runtime.report.gallery import Gallery
    from runtime.store import Store

Say = Callable[[str], None]
"""A function that shows a line on stderr."""

# Heavy imports come after parsing, in the function that needs them.

WHAT = "cluster embeddings"
EXAMPLES = """examples:
  %(prog)s embeddings/ --k 10 --out clusters/
  %(prog)s embeddings/ --k 10 --out clusters/ --labels folders
  %(prog)s embeddings/ --k auto --k-range 5:50 --out clusters/
  %(prog)s embeddings/ --algorithm minibatch --k 1000 --out clusters/
  %(prog)s embeddings/ --algorithm hdbscan --min-cluster-size 20 --out clusters/
  %(prog)s new/ --assign clusters/ --out new-clusters/
  %(prog)s embeddings/ --k 1000 --out clusters/ --ray auto"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_store(parser)
    parser.add_argument(
        "--algorithm",
        choices=cluster_options.ALGORITHMS,
        help="kmeans: the default; minibatch: reads the store again and again in place of holding it; hdbscan: finds "
        "the number of clusters, and leaves noise out; agglomerative: of 30,000 embeddings at most",
    )
    parser.add_argument(
        "--k",
        metavar="K",
        type=cluster_options.number_of_clusters,
        help=f"number of clusters; {AUTO}: that of the highest silhouette, on a sample of 4,000. Not for hdbscan",
    )
    parser.add_argument(
        "--k-range",
        metavar="LOW:HIGH",
        type=cluster_options.range_of_k,
        help=f"what --k {AUTO} tries (default: 2:30)",
    )
    parser.add_argument(
        "--metric",
        choices=cluster_options.METRICS,
        help="cosine: embeddings are divided by their L2 norm first; euclidean: they are taken as they are "
        "(default: cosine)",
    )
    parser.add_argument(
        "--out",
        metavar="OUT",
        type=options.path,
        required=True,
        help="folder for labels.parquet (with --ray labels-00000.parquet and so on), centroids.npy, clusters.png and "
        "summary.json; made if need be",
    )
    parser.add_argument(
        "--assign",
        metavar="CENTROIDS",
        type=options.path,
        help="cluster nothing: give each embedding the nearest of these, an older run's OUT or its centroids.npy",
    )
    parser.add_argument("--seed", type=int, help="same seed, same clusters, on one machine (default: 0)")
    parser.add_argument("--n-init", type=int, help="of kmeans: starts, the best of which is kept (default: 10)")
    parser.add_argument(
        "--max-iter", type=int, help="of kmeans: iterations of a start (default: 300); of minibatch: passes (10)"
    )
    parser.add_argument("--device", help="of kmeans: cpu, cuda[:N] by PyTorch, torch-cpu to check")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        type=text,
        help="of kmeans and --assign: learn centroids on a sample; Ray finds the nearest one of each embedding, on all "
        "machines of a cluster: auto or HOST:PORT, or local to start Ray here (the extra `ray`)",
    )
    parser.add_argument("--min-cluster-size", type=int, help="of hdbscan: what is smaller is noise (default: 5)")
    parser.add_argument(
        "--min-samples", type=int, help="of hdbscan: neighbours that make a place dense (default: --min-cluster-size)"
    )
    parser.add_argument("--linkage", choices=cluster_options.LINKAGES, help="of agglomerative (default: ward)")
    parser.add_argument(
        "--labels",
        choices=["folders"],
        help="score the clusters (ACC, NMI, ARI), the name of an image's folder being its class",
    )
    options.add_images_root(parser, "where the images were moved since they were embedded")
    cluster_report.add_arguments(parser)
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else")
    options.add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Cluster the embeddings in `arguments.embeddings` into `arguments.out`; gives the exit code.

    Raises:
        UsageError: an option has no meaning for these embeddings, or beside another.
        InputError: there are no embeddings, or they can't be clustered.
        BackendError: there is no such device.
        OutputFileError: the results can't be written.
    """
    settings = Settings.parse(arguments)
    cluster_report.check(arguments)
    _check_ray(arguments.ray, settings)
    started = time.monotonic()
    from runtime.clustering import assign
    from runtime.clustering import results as cluster_output
    from runtime.clustering.by_settings import cluster_store
    from runtime.clustering.points import StoreReader

    say = options.teller(arguments)
    out = arguments.out
    store = options.open_store(arguments.embeddings, say, "clustering")
    old = None if settings.assign is None else assign.load(settings.assign)
    reader = StoreReader(store, _metric(settings, old, store, say))
    moved = options.moved(arguments, store.images)
    with cluster_output.output_folder(out, arguments.embeddings, settings.assign) as work:
        if old is not None:
            clustering, curve = _assigned(reader, old, arguments.ray, say)
        else:
            clustering, curve = cluster_store(reader, settings, say, arguments.ray)
        named, key_at = _names(store, by_part=arguments.ray is not None)
        from runtime.clustering import (
            summary as cluster_summary,  # and what draws, now that the points are out of memory
        )
        from runtime.store.origin import sixteen_bit_of

        def key_of(row: int) -> Key:
            root, path = key_at(row)
            return moved.now(root), path

        classes, scores = _scored(arguments.labels, store, clustering, say)
        picture = _drawn(clustering, key_of, sixteen_bit_of(store.origin), say)
        drawn = {"clusters": picture.clusters, "images": picture.images, "unreadable": len(picture.unreadable)}
        summary = cluster_summary.summarize(clustering, settings, reader.metric, store, drawn, scores, curve, old)
        summary = cluster_output.publish_results(out, work, named, clustering, picture.png, summary)
    sys.stdout.write(f"{json.dumps(summary, indent=2)}\n" if arguments.json else cluster_summary.as_text(summary, out))
    sys.stdout.flush()  # before the report, which takes a while and may fail
    if arguments.report is not None:
        say("writing the report")
        seconds = time.monotonic() - started
        say(
            cluster_report.write(
                arguments,
                reader,
                clustering,
                key_of,
                summary,
                command=command_line("cluster", add_arguments, arguments),
                classes=classes,
                curve=curve,
                seconds=seconds,
            )
        )
    return 0


def _metric(settings: Settings, old: OldClusters | None, store: Store, say: Say) -> str:
    """By which it is clustered: as was asked for, or as the older run was."""
    from runtime.clustering import assign

    if old is None:
        return settings.metric or "cosine"
    metric, unknown = assign.check_fit(old, store, settings.metric)
    if unknown:
        say(f"--assign {settings.assign}: {unknown}")
    return metric


def _check_ray(ray: str | None, settings: Settings) -> None:
    """Check that Ray is installed if it is asked for, and for what it can do.

    Raises:
        BackendError: it is not installed.
        UsageError: it is asked for another algorithm, or for a k that is to be found.
    """
    if ray is None:
        return
    from runtime.contract.ray_cluster import require_ray

    if settings.assign is None and (settings.algorithm != "kmeans" or settings.k is None):
        raise UsageError("--ray is for --algorithm kmeans with a number as --k, and for --assign")
    require_ray("--ray")


def _assigned(reader: StoreReader, old: OldClusters, ray: str | None, say: Say) -> tuple[Clustering, None]:
    """The clusters of an older run."""
    from runtime.clustering import assign, by_ray

    store = reader.store
    say(f"assigning {len(store):,} embeddings of width {store.width} to {len(old.centroids):,} clusters")
    find = reader.labelled if ray is None else functools.partial(by_ray.labelled, reader, address=ray)
    return assign.assign(find, old), None


def _names(store: Store, *, by_part: bool) -> tuple[Iterable[Named], Callable[[int], Key]]:
    """The images of each file of labels, and what gives the key of a row.

    Args:
        store: of the images.
        by_part: whether there is a file for each part of the store; then few paths are in memory, else all.
    """
    from runtime.clustering.by_ray import KeysByPart
    from runtime.clustering.results import LABELS, labels_part

    if by_part:
        keys = KeysByPart(store)
        return ((labels_part(number), *found) for number, found in enumerate(keys)), keys.at
    roots, paths = _all_names(store)
    return [(LABELS, roots, paths)], lambda row: (roots[row], paths[row])


def _all_names(store: Store) -> tuple[list[str], list[str]]:
    """Root and path of each image; a root is in memory once, however many images it has."""
    roots, paths = [], []
    for root, path in store.images():
        roots.append(sys.intern(root))
        paths.append(path)
    return roots, paths


def _scored(
    labels: str | None, store: Store, clustering: Clustering, say: Say
) -> tuple[list[str] | None, Metrics | None]:
    """The classes that `--labels` takes from names, and how well the clusters agree with them."""
    if labels is None:
        return None, None
    from runtime.clustering import metrics

    classes = metrics.folder_classes(*_all_names(store))
    scores = metrics.score(classes, clustering.labels, len(clustering.sizes))
    if len(scores.classes) == 1:
        say(f"all images lie in folders named {scores.classes[0]!r}: ACC, NMI and ARI say nothing")
    return classes, scores


def _drawn(clustering: Clustering, key_of: Callable[[int], Key], sixteen_bit: str, say: Say) -> Gallery:
    """The picture: a row for each cluster, and for the noise behind them."""
    from runtime.contract.keys import location
    from runtime.contract.labels import NOISE
    from runtime.report import gallery
    from runtime.sources import read_image

    say("drawing the most central images")
    groups = list(enumerate(clustering.members()))
    if clustering.noise:
        groups.append((NOISE, clustering.noise_members()))
    picture = gallery.draw_gallery(
        [
            gallery.Cluster(number, len(members), [key_of(row) for row in members[: gallery.MAX_IMAGES]])
            for number, members in groups
        ],
        functools.partial(read_image, sixteen_bit=sixteen_bit),
    )
    if picture.unreadable:
        first = location(*picture.unreadable[0])
        say(f"{len(picture.unreadable)} of the picture's images can't be read any more, the first: {first}")
    return picture
