"""`python -m runtime dedup`: groups of near-duplicates, and which one of each stays."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime.clustering.duplicates import KEEP
from runtime.commands import options, report_facts
from runtime.commands.command_line import command_line
from runtime.contract.console import add_threads
from runtime.contract.errors import UsageError

if TYPE_CHECKING:
    from runtime.clustering.duplicates import Duplicates
    from runtime.store import Store
    from runtime.store.moved import Moved

WHAT = "find near-duplicates in a store, and say which ones to keep"
EXAMPLES = """examples:
  %(prog)s embeddings/ --out duplicates/
  %(prog)s embeddings/ --out duplicates/ --threshold 0.99 --keep last --report duplicates.html
  %(prog)s embeddings.npy --out duplicates/ --json

Two images are duplicates if the cosine of their embeddings is the threshold or more; those that are connected by such
pairs are a group. OUT gets duplicates.parquet with a row for each image of the store (root, path, row, group,
similarity to the one that is kept, keep), and summary.json. Nothing is removed: filter by the column `keep`."""

MOST_SHOWN, MOST_OF_A_GROUP = 2_000, 24
"""Images in a report, and of one group."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_store(parser)
    parser.add_argument(
        "--out",
        metavar="OUT",
        type=options.path,
        required=True,
        help="folder for duplicates.parquet and summary.json; made if need be",
    )
    parser.add_argument(
        "--threshold", metavar="T", type=float, default=0.97, help="cosine, above 0 to 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--keep",
        choices=KEEP,
        default="first",
        help="which one of a group stays: the first or last row of the store, or the nearest to the centroid of its "
        "cluster or the farthest from it (default: %(default)s)",
    )
    options.add_images_root(parser, "where the images were moved since they were embedded")
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        type=options.path,
        help="write a page that opens offline, with the images of the largest groups",
    )
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else")
    options.add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Find the duplicates in `arguments.embeddings`; returns the exit code.

    Raises:
        UsageError: an option has no meaning, or OUT holds other files.
        InputError: the embeddings can't be read.
        OutputFileError: the result or the report can't be written.
    """
    if not 0 < arguments.threshold <= 1:
        raise UsageError(f"--threshold {arguments.threshold}: must be above 0, at most 1")
    if arguments.report is not None:
        from runtime.report import check_target

        check_target(arguments.report, to_be_made=arguments.out)
    started = time.monotonic()
    from runtime.clustering import duplicate_files
    from runtime.clustering.duplicates import find_duplicates
    from runtime.contract.progress import NowAndThen
    from runtime.store.result_folder import result_folder

    say = options.teller(arguments)
    store = options.open_store(arguments.embeddings, say, "comparing")
    moved = options.moved(arguments, store.images)
    with result_folder(arguments.out, duplicate_files.KIND) as work:
        found = find_duplicates(store, arguments.threshold, arguments.keep, work, NowAndThen(say))
        summary = duplicate_files.summarize(found, store, arguments.threshold, arguments.keep)
        summary = duplicate_files.publish(arguments.out, work, store.images(), found, summary)
    sys.stdout.write(f"{json.dumps(summary, indent=2)}\n" if arguments.json else _as_text(summary, str(arguments.out)))
    sys.stdout.flush()
    if arguments.report is not None:
        say(_write_report(arguments, store, found, moved, summary, time.monotonic() - started))
    return 0


def _as_text(summary: Mapping[str, Any], out: str) -> str:
    from runtime.contract.console import count

    lines = [
        f"{count(summary['source']['images'], 'image')}: {summary['kept']:,} to keep, "
        f"{count(summary['duplicates'], 'duplicate')} in {count(summary['groups'], 'group')}, "
        f"the largest of {count(summary['largest_group'], 'image')}"
    ]
    if summary["zeros"]:
        lines.append(f"{count(summary['zeros'], 'embedding')} all zeros, which have no duplicate")
    if summary["images_without_embedding"]:
        lines.append(f"{count(summary['images_without_embedding'], 'image')} without an embedding, not compared")
    return "".join(f"{line}\n" for line in (*lines, f"results in {out}"))


def _write_report(
    arguments: argparse.Namespace,
    store: Store,
    found: Duplicates,
    moved: Moved,
    summary: Mapping[str, Any],
    seconds: float,
) -> str:
    """Write the page; returns a line about it."""
    import numpy as np

    from runtime import report
    from runtime.contract.console import count
    from runtime.sources.at_hand import at_hand
    from runtime.store.origin import sixteen_bit_of

    order = np.lexsort((-found.similarities, ~found.kept, found.groups))[int((found.groups < 0).sum()) :]
    shown = [rows[:MOST_OF_A_GROUP].tolist() for rows in np.split(order, np.cumsum(found.sizes)[:-1])]
    enough = int(np.searchsorted(np.cumsum([len(rows) for rows in shown]), MOST_SHOWN)) + 1
    shown = shown[: min(enough, len(found.sizes))]
    keys = dict.fromkeys(itertools.chain.from_iterable(shown), ("", ""))
    for row, (root, path) in enumerate(store.images()):
        if row in keys:
            keys[row] = moved.now(root), path
    groups: list[report.Group] = []
    for number, rows in enumerate(shown):
        images = [
            report.Pictured(keys[row], "kept", is_marked=True)
            if found.kept[row]
            else report.Pictured(keys[row], f"{found.similarities[row]:.3f}")
            for row in rows
        ]
        left = int(found.sizes[number]) - len(images)
        note = f"{count(int(found.sizes[number]), 'image')}{f', {left:,} of them not shown' if left else ''}"
        groups.append(report.Group(f"Group {number}", images, note))
    notes = report_facts.notes(store)
    if len(groups) < len(found.sizes):
        notes.append(f"The {count(len(groups), 'group')} of the most images are shown.")
    made = report.Report(
        title=f"Duplicates in {store.path.resolve().name}",
        lead=f"groups of images whose embeddings have a cosine of {arguments.threshold:g} or more",
        headlines=[
            report.Headline("images", f"{len(store):,}"),
            report.Headline("to keep", f"{summary['kept']:,}"),
            report.Headline("duplicates", f"{summary['duplicates']:,}", f"{summary['duplicates'] / len(store):.1%}"),
            report.Headline("groups", f"{summary['groups']:,}", f"the largest of {summary['largest_group']:,}"),
        ],
        notes=notes,
        groups=groups,
        groups_title="Groups",
        facts=report_facts.facts(command_line("dedup", add_arguments, arguments), store, summary, seconds),
    )
    as_embedded = functools.partial(at_hand, sixteen_bit=sixteen_bit_of(store.origin))
    written = report.write_report(arguments.report, made, as_embedded)
    return f"report {arguments.report}: {written.bytes / 1000:,.0f} kB, {written.images:,} images"
