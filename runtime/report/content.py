"""The content of a report: frozen records that `cluster` and `evaluate` fill and `write_report` draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.contract.keys import Key
from runtime.contract.manifest import Preprocessing
from runtime.images.decode import ReadImage

OpenImages = Callable[[Iterable[Key]], AbstractContextManager[ReadImage]]
"""Prepares the images of some keys (with their present roots) and returns a decoder, as `sources.at_hand.at_hand`."""


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """An image of a contact sheet."""

    key: Key
    distance: float | None = None
    """Distance to the centre of its cluster."""
    label: str | None = None
    """Its class; None if it is not known."""
    nearest_other: int | None = None
    """The cluster whose centre is the second nearest, for a borderline image."""


@dataclass(frozen=True)
class Cluster:
    """A cluster and the images that stand for it, each of them in one of the three lists at most."""

    number: int
    """The number of the cluster, or `NOISE`."""
    size: int
    central: Sequence[Shown] = ()
    """Images nearest to its centre, the nearest first; for noise, a sample."""
    borderline: Sequence[Shown] = ()
    """Images whose second nearest centre is hardly farther than their own, the smallest margin first."""
    outliers: Sequence[Shown] = ()
    """Images farthest from its centre, the farthest first."""
    label: str | None = None
    """The class of most of its images, where classes are known."""
    label_count: int = 0
    """Number of its images of that class."""


@dataclass(frozen=True)
class Pictured:
    """An image of a group."""

    key: Key
    note: str
    """A few words below it, such as its similarity to the first one."""
    is_marked: bool = False
    """Whether the words stand out."""


@dataclass(frozen=True)
class Group:
    """A row of images that belong together, such as a query and its neighbours."""

    title: str
    images: Sequence[Pictured]
    note: str = ""


@dataclass(frozen=True)
class Layout:
    """The positions of the m images of a map."""

    name: str
    positions: npt.NDArray[np.float64]
    """(m, 2)."""
    note: str = ""


@dataclass(frozen=True)
class Map:
    """m images in the plane."""

    keys: Sequence[Key]
    clusters: Sequence[int]
    """m numbers of clusters."""
    layouts: Sequence[Layout]
    """One or more; the first is seen first."""
    labels: Sequence[str] | None = None
    """m classes, where they are known."""
    total: int = 0
    """Number of all images; the map shows a sample if there are more than m."""
    seed: int = 0
    """The seed of the sample."""


@dataclass(frozen=True)
class Confusion:
    """The number of images by class and cluster."""

    classes: Sequence[str]
    clusters: Sequence[int]
    """The numbers of the k clusters, `NOISE` among them."""
    counts: npt.NDArray[np.int64]
    """(classes, k)."""
    class_of_cluster: Sequence[str | None]
    """k classes: the class of each cluster by the matching that ACC uses."""


@dataclass(frozen=True)
class FlaggedImage:
    """An image and its artifacts."""

    key: Key
    share: Sequence[float]
    """(P,), row by row: the share of the layers in which a patch is flagged, 0 to 1."""


@dataclass(frozen=True)
class Norms:
    """Norms of the patches of all sampled images in one layer."""

    layer: int
    edges: Sequence[float]
    """b + 1, rising."""
    normal: Sequence[int]
    """b counts of patches that were not flagged."""
    flagged: Sequence[int]
    """b counts of patches that were."""
    source: str = ""
    """Whose norms they are, where it is not said elsewhere."""
    valley: tuple[int, int] | None = None
    """The first and the last of the bins between two modes, which hardly any patch has."""


@dataclass(frozen=True)
class Places:
    """The places of the grid at which patches are flagged."""

    share: Sequence[float]
    """(P,), row by row: the share of the images in which a place is flagged, 0 to 1."""
    note: str


@dataclass(frozen=True)
class Artifacts:
    """The patches that ITAE flags in a sample of images."""

    model: str
    detection: str
    """The options of detection, in words."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    preprocessing: Preprocessing
    """How the model gets an image."""
    images: Sequence[FlaggedImage]
    norms: Sequence[Norms]
    """One for each layer that ITAE changes; empty for artifacts that are positions."""
    seed: int = 0
    """The seed of the sample."""
    note: str = ""
    drawn: str = "drawn at random"
    """How the images were chosen."""
    places: Places | None = None
    """None if only a few images were looked at."""


@dataclass(frozen=True)
class Table:
    """A table of words, such as models beside each other; the first cell of a row names it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    best: Sequence[tuple[int, int]] = ()
    """Row and column of the cells to be set in bold."""


@dataclass(frozen=True)
class Curve:
    """A score for each number of clusters that was tried."""

    k: Sequence[int]
    scores: Sequence[float]
    chosen: int
    name: str = "silhouette"


@dataclass(frozen=True)
class Report:
    """Everything that a report shows; empty fields and None are left out."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Facts of the run, such as the command and the date: name and value."""
    lead: str = ""
    """A sentence below the title."""
    headlines: Sequence[Headline] = ()
    notes: Sequence[str] = ()
    """Remarks that a reader needs to understand the numbers."""
    tables: Sequence[Table] = ()
    curve: Curve | None = None
    groups: Sequence[Group] = ()
    groups_title: str = "Groups"
    """The title of their section."""
    clusters: Sequence[Cluster] = ()
    map: Map | None = None
    confusion: Confusion | None = None
    artifacts: Artifacts | None = None
