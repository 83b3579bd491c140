"""A report as one HTML file that opens offline: numbers, images of each cluster, a map, what ITAE flags.

Commands fill the records of `content`, `write_report` draws them; what is left out is not shown.
Imports `contract` and `images`: what reads the images of keys is given to it.
"""

from runtime.report.content import (
    Artifacts,
    Cluster,
    Confusion,
    Curve,
    FlaggedImage,
    Group,
    Headline,
    Layout,
    Map,
    Norms,
    OpenImages,
    Pictured,
    Places,
    Report,
    Shown,
    Table,
)
from runtime.report.layout import draw_map
from runtime.report.write import Written, check_target, write_report

__all__ = [
    "Artifacts",
    "Cluster",
    "Confusion",
    "Curve",
    "FlaggedImage",
    "Group",
    "Headline",
    "Layout",
    "Map",
    "Norms",
    "OpenImages",
    "Pictured",
    "Places",
    "Report",
    "Shown",
    "Table",
    "Written",
    "check_target",
    "draw_map",
    "write_report",
]
