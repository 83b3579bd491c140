"""A report as one HTML file that opens offline: numbers, images of each cluster, a map, what ITAE flags.

    a clustering and keys -> describe_clusters, draw_map, count_confusion, sample_artifacts -> Report -> write_report

`cluster` and `evaluate` fill a `Report`; what they leave out is not shown.
"""

from runtime.clustering import NOISE
from runtime.report.artifacts import check_outputs, sample_artifacts
from runtime.report.choose import count_confusion, describe_clusters
from runtime.report.content import (
    Artifacts,
    Cluster,
    Confusion,
    Curve,
    FlaggedImage,
    Headline,
    Key,
    Layout,
    Map,
    Norms,
    Report,
    Shown,
    Table,
)
from runtime.report.layout import draw_map
from runtime.report.write import Written, check_target, write_report

__all__ = [
    "NOISE",
    "Artifacts",
    "Cluster",
    "Confusion",
    "Curve",
    "FlaggedImage",
    "Headline",
    "Key",
    "Layout",
    "Map",
    "Norms",
    "Report",
    "Shown",
    "Table",
    "Written",
    "check_outputs",
    "check_target",
    "count_confusion",
    "describe_clusters",
    "draw_map",
    "sample_artifacts",
    "write_report",
]
