"""Options that say which images a command reads, and how; each is declared once, for `exporter` and `runtime`."""

from __future__ import annotations

import argparse

from runtime.contract.console import text
from runtime.images.formats import SIXTEEN_BIT


def add_sixteen_bit(parser: argparse._ActionsContainer) -> None:
    """Declare --sixteen-bit."""
    parser.add_argument(
        "--sixteen-bit",
        choices=SIXTEEN_BIT,
        default="full",
        help="white in images of 16 bits: 65535 (full), or the largest value of the 8, 10, 12, 14 or 16 bits that the "
        "image uses (auto), for 12-bit cameras whose images come out nearly black otherwise (default: %(default)s)",
    )


def add_selection(parser: argparse._ActionsContainer, where: str = "folders and tars") -> None:
    """Declare --include, --exclude and --follow-links; `Selection.from_arguments` reads them."""
    parser.add_argument(
        "--include",
        metavar="PATTERN",
        action="append",
        type=text,
        help=f"take only files of {where} that match, as '*.jpg' or 'raw/*'; may be given several times",
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        type=text,
        help=f"leave out files of {where} that match, and what lies in folders that match; may be given several times",
    )
    parser.add_argument(
        "--follow-links",
        action="store_true",
        default=None,
        help="search folders that links in folders lead to, each folder once",
    )


def add_image_column(parser: argparse._ActionsContainer) -> None:
    """Declare --image-column."""
    what = "column of parquet files that holds the images, or paths of images"
    parser.add_argument(
        "--image-column", metavar="NAME", type=text, help=f"{what} (default: found by its type and name)"
    )
