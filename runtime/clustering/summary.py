"""The summary of a clustering: `summary.json`, and the lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.clustering.assign import OldClusters
from runtime.clustering.choose_k import Curve
from runtime.clustering.clusters import Clustering
from runtime.clustering.metrics import Metrics
from runtime.clustering.options import Settings
from runtime.clustering.results import LABELS, PICTURE, labels_part
from runtime.contract.console import count
from runtime.store import Store

FORMAT = 1
_LISTED = 20
"""Number of clusters whose sizes are listed for people; the summary has all."""


def summarize(
    clustering: Clustering,
    settings: Settings,
    metric: str,
    store: Store,
    picture: dict[str, int],
    scores: Metrics | None = None,
    curve: Curve | None = None,
    old: OldClusters | None = None,
) -> dict[str, Any]:
    """Make the content of `summary.json`, except for the files' hashes.

    Args:
        clustering: the result.
        settings: the options of the command.
        metric: the metric of the clustering.
        store: the store of the embeddings.
        picture: the numbers of drawn `clusters` and `images`, and of `unreadable` ones among these.
        scores: the comparison with known classes; None if there are none.
        curve: the silhouettes of `--k auto`; None without it.
        old: the clusters that were assigned; None if new ones were made.
    """
    k, width = clustering.centroids.shape
    draws = old is None and (settings.algorithm in ("kmeans", "minibatch") or curve is not None)
    return {
        "format": FORMAT,
        "algorithm": "assign" if old is not None else settings.algorithm,
        "metric": metric,
        "k": k,
        "seed": settings.seed if draws else None,
        "options": settings.given,
        "n": len(clustering.labels),
        "width": width,
        "inertia": clustering.inertia,
        "iterations": clustering.iterations,
        "sizes": clustering.sizes.tolist(),
        "noise": clustering.noise,
        "silhouette": None
        if curve is None
        else {"points": curve.points, "k": list(curve.ks), "mean": list(curve.silhouettes)},
        "assigned": None if old is None else {"centroids": str(old.path.resolve()), "model_sha256": old.model_sha256},
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
        "picture": picture,
        "source": {"folder": str(store.path.resolve()), "model_sha256": store.origin.get("model_sha256")},
        "versions": _versions(settings),
    }


def _versions(settings: Settings) -> dict[str, str]:
    from importlib import metadata

    by_torch = settings.given.get("device", "cpu") != "cpu"
    return {name: metadata.version(name) for name in ("itae", "numpy", "scikit-learn", *["torch"] * by_torch)}


def as_text(summary: dict[str, Any], out: Path) -> str:
    """The summary for people."""
    n, sizes, noise = summary["n"], summary["sizes"], summary["noise"]
    lines = [f"{count(n, 'image')} in {count(summary['k'], 'cluster')} ({_how(summary)})", ""]
    if (curve := summary["silhouette"]) is not None:
        best = max(curve["mean"])
        lines[1:1] = [
            f"k = {curve['k'][curve['mean'].index(best)]} has the highest silhouette, {best:.3f}, of "
            f"{curve['k'][0]} to {curve['k'][-1]} (on {count(curve['points'], 'embedding')})"
        ]
    lines.append("cluster      images   share")
    lines += [f"{number:<10,} {size:8,} {size / n:7.1%}" for number, size in enumerate(sizes[:_LISTED])]
    if rest := sizes[_LISTED:]:
        lines.append(f"{f'{len(rest):,} more':10} {sum(rest):8,} {sum(rest) / n:7.1%}")
    if noise:
        lines.append(f"{'noise':10} {noise:8,} {noise / n:7.1%}")
    lines.append("")
    if (scores := summary["metrics"]) is not None:
        lines.append(
            f"ACC {scores['acc']:.4f}  NMI {scores['nmi']:.4f}  ARI {scores['ari']:.4f}  "
            f"(against {count(len(scores['classes']), 'folder name')})"
        )
    picture = summary["picture"]
    drawn = "" if picture["clusters"] == summary["k"] + (noise > 0) else f" (the first {picture['clusters']} clusters)"
    lines += [f"picture  {out / PICTURE}{drawn}", f"labels   {out / _labels(summary['files'])}"]
    return "\n".join(lines) + "\n"


def _labels(files: dict[str, Any]) -> str:
    """The file or files of labels, as a pattern."""
    return LABELS if labels_part(0) not in files else "labels-*.parquet"


def _how(summary: dict[str, Any]) -> str:
    """The origin of the clusters in a few words."""
    inertia = f"inertia {summary['inertia']:.6g}"
    if summary["algorithm"] == "assign":
        return f"of {summary['assigned']['centroids']}, {inertia}"
    if not summary["iterations"]:
        return f"{summary['algorithm']}, {summary['metric']}, {inertia}"
    what = "pass" if summary["algorithm"] == "minibatch" else "iteration"
    times = count(summary["iterations"], what).replace("passs", "passes")
    return f"seed {summary['seed']}, {inertia}, {times}"
