"""Small reports of seeded pictures, and a parser of report files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from preprocessing import standard_preprocessing

from runtime.clustering.clusters import Clustering, nearest_other
from runtime.clustering.points import add_rows, distances_to
from runtime.commands.report_clusters import count_confusion, describe_clusters
from runtime.contract.keys import Key
from runtime.contract.labels import NOISE
from runtime.report import Artifacts, Cluster, Confusion, Curve, FlaggedImage, Headline, Norms, Report, Table, draw_map

HUES = [(200, 40, 40), (40, 170, 60), (40, 80, 200), (200, 170, 30)]


def picture(folder: Path, name: str, color: tuple[int, int, int] = HUES[0], size: tuple[int, int] = (80, 60)) -> Key:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, "PNG")
    return str(folder), name


def noise(folder: Path, name: str, seed: int, side: int = 200) -> Key:
    """What compresses worst."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG", compress_level=0)
    return str(folder), name


def blobs(k: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """k groups of unit vectors, (k * each, k + 2) float32, and their labels."""
    labels = np.repeat(np.arange(k, dtype=np.int32), each)
    points = 0.12 * np.random.default_rng(seed).standard_normal((k * each, k + 2))
    points[np.arange(len(labels)), labels] += 1
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def small_report(folder: Path, k: int = 3, each: int = 6, *, labels: bool = True) -> Report:
    """A report of k clusters of `each` pictures, with everything that a report can show, classes if asked for."""
    points, found = blobs(k, each)
    keys = [picture(folder, f"class{found[row]}/{row}.png", HUES[found[row] % 4]) for row in range(len(found))]
    classes = [f"class{label}" for label in found] if labels else None
    if classes is not None:
        classes[0] = classes[-1]  # one of the first cluster is of the last class
    return Report(
        title="Clusters of pictures",
        lead="for a test",
        facts=[("command", "cluster pictures"), ("seed", "0")],
        headlines=[Headline("images", f"{len(found):,}"), Headline("ACC", "0.9444", "against 3 classes")],
        notes=["These weights are random."],
        tables=[Table("Models", ["model", "ACC"], [["plain", "0.5"], ["ITAE", "0.6"]], "of one seed", [(1, 1)])],
        curve=Curve([2, 3, 4], [0.3, 0.5, 0.4], 3),
        clusters=described(points, found, keys.__getitem__, classes=classes),
        map=draw_map(points.__getitem__, found, keys.__getitem__, classes=classes, seed=0),
        confusion=confusion(found, classes),
        artifacts=Artifacts(
            "m.onnx", "key norm, mad:5 on both", (3, 3), standard_preprocessing((42, 42), "uint8"),
            [FlaggedImage(keys[0], [1.0] + [0.0] * 8)], [Norms(11, [0.0, 1.0, 2.0], [5, 3], [0, 1])],
        ),
    )  # fmt: skip


def described(points: np.ndarray, labels: np.ndarray, key_of, classes=None, centroids=None) -> tuple[Cluster, ...]:
    """The clusters of points (n, C) in the order of their labels (n,), as of `--assign`; some may be empty."""
    k = int(labels.max()) + 1
    inside = labels != NOISE
    sizes = np.bincount(labels[inside], minlength=k)
    if centroids is None:
        centroids = np.zeros((k, points.shape[1]))
        add_rows(centroids, points, labels, np.flatnonzero(inside))
        centroids /= np.maximum(sizes, 1)[:, None]
    distances = np.full(len(points), np.nan, np.float32)
    distances[inside] = distances_to(points[inside], centroids, labels[inside])
    found = Clustering(labels.astype(np.int32), distances, np.asarray(centroids, np.float32), sizes, 0.0, 0)
    return describe_clusters(found, nearest_other([points], found), key_of, classes=classes)


def confusion(labels: np.ndarray, classes: list[str] | None) -> Confusion | None:
    return None if classes is None else count_confusion(labels, classes)


@dataclass
class Parsed(HTMLParser):
    """What a browser would see: `tags` with their attributes in order, `text`, and the code of scripts and styles."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    code: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._inside: str | None = None
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag) -> None:
        self._inside = None

    def handle_data(self, data) -> None:
        if self._inside is not None:
            self.code.setdefault(self._inside, []).append(data)
        else:
            self.text += data + " "

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [got for one, got in self.tags if one == tag and wanted.items() <= got.items()]

    def map(self) -> dict:
        """The map's data."""
        return json.loads(self.code["script"][0])


def parse(path: Path) -> Parsed:
    return Parsed(path.read_text("utf-8"))
