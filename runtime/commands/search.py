"""`python -m runtime search`: the images of a store that are nearest to some images."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.commands import options, report_facts
from runtime.commands.command_line import command_line
from runtime.contract.console import add_threads, text
from runtime.contract.errors import InputError, UsageError
from runtime.store.search import METHODS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from runtime.contract.keys import Key
    from runtime.contract.manifest import Manifest
    from runtime.store import Neighbour, Store

Say = Callable[[str], None]

WHAT = "find the images of a store that are nearest to some images"
EXAMPLES = """examples:
  %(prog)s embeddings/ cat.jpg
  %(prog)s embeddings/ cat.jpg dog.jpg --top 50 --model itae.onnx --json
  %(prog)s embeddings/ --row cats/17.jpg --report near.html
  %(prog)s embeddings.npy cat.jpg --model itae.onnx

Each IMAGE is embedded by the model that made the store; --row takes an image that is in the store, and needs no
model. Similarity is the cosine of two embeddings. Below 1,000,000 rows every row is compared. Above, an index of faiss
is built once beside the store (the extra `search`), and again when the store has changed; it finds nearly all.

exit code: 0 if the search was done, 2 for bad use or an image that can't be read"""

MOST_SHOWN = 2_000
"""Images in a report: those of the first queries."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_store(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="*", type=options.path, help="image files to search for")
    parser.add_argument(
        "--row",
        metavar="PATH",
        action="append",
        type=text,
        help="search for the neighbours of an image of the store: its path there, or root and path; may be given "
        "several times",
    )
    parser.add_argument("--top", metavar="N", type=int, default=10, help="neighbours of each (default: %(default)s)")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        type=options.path,
        help="the model that made the store, to embed IMAGE (default: the file of the recorded name, in the current "
        "folder or beside the store)",
    )
    options.add_provider(parser)
    options.add_no_verify_hash(parser)
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="exact: compare every row; index: build an index, or take the one that is there; auto: exact below "
        "1,000,000 rows (default: %(default)s)",
    )
    options.add_images_root(parser, "where the images were moved since they were embedded")
    parser.add_argument(
        "--report", metavar="FILE.html", type=options.path, help="write a page with the images, which opens offline"
    )
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print the neighbours as JSON, and nothing else")
    options.add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search the embeddings in `arguments.embeddings`; returns the exit code.

    Raises:
        UsageError: nothing is searched for, an option has no meaning, or the model is not the store's.
        InputError: the store or an image can't be read, or the store has no such row.
        ItaeError: the model can't be loaded or run, or the index or the report can't be written.
    """
    if not arguments.images and not arguments.row:
        raise UsageError("nothing to search for: give an IMAGE, or --row PATH of an image in the store")
    if arguments.top < 1:
        raise UsageError(f"--top {arguments.top}: must be 1 or more")
    if arguments.report is not None:
        from runtime.report import check_target

        check_target(arguments.report)
    from runtime.contract.progress import NowAndThen
    from runtime.store.search import chosen_method

    say = options.teller(arguments)
    store = options.open_store(arguments.embeddings, say, "searching")
    moved = options.moved(arguments, store.images)
    rows = _rows(store, arguments.row or [])
    vectors, model = _embedded(arguments, store, say)
    near = functools.partial(store.search, top=arguments.top, method=arguments.method, tell=NowAndThen(say))
    found = (near(vectors) if len(vectors) else []) + (near(rows) if rows else [])
    queries = [("image", str(path)) for path in arguments.images] + [("row", path) for path in arguments.row or []]
    result = {
        "store": str(arguments.embeddings),
        "rows": len(store),
        "method": chosen_method(arguments.method, len(store)),
        "model": None if model is None else str(model),
        "queries": [
            {kind: query, "neighbours": [_as_json(one, moved.now(one.root)) for one in hits]}
            for (kind, query), hits in zip(queries, found, strict=True)
        ],
    }
    sys.stdout.write(f"{json.dumps(result, indent=2)}\n" if arguments.json else _as_text(result))
    sys.stdout.flush()
    if arguments.report is not None:
        keys = [_key(path) for path in arguments.images]
        keys += [(moved.now(root), path) for root, path in _keys(store, rows)]
        say(_write_report(arguments, store, result, keys))
    return 0


def _as_json(one: Neighbour, root: str) -> dict[str, Any]:
    return {"root": root, "path": one.path, "row": one.row, "similarity": round(one.similarity, 6)}


def _as_text(result: Mapping[str, Any]) -> str:
    from runtime.contract.errors import plain
    from runtime.contract.keys import location

    lines = []
    for query in result["queries"]:
        lines.append(plain(query.get("image") or query["row"]))
        lines += [
            f"  {one['similarity']:.4f}  {plain(location(one['root'], one['path']))}" for one in query["neighbours"]
        ]
    return "".join(f"{line}\n" for line in lines)


def _rows(store: Store, paths: Sequence[str]) -> list[int]:
    """The row of each path; raises InputError if there is none, or several."""
    from runtime.contract.keys import location

    wanted: dict[str, list[int]] = {path: [] for path in paths}
    for row, (root, path) in enumerate(store.images() if paths else ()):
        for name in {path, location(root, path)}:
            if name in wanted:
                wanted[name].append(row)
    for path, rows in wanted.items():
        if not rows:
            raise InputError(f"--row {path}: {store.path} has no image of this path: give it as it is in the store")
        if len(rows) > 1:
            raise InputError(f"--row {path}: {len(rows)} roots of the store have this path: give root and path")
    return [wanted[path][0] for path in paths]


def _keys(store: Store, rows: Sequence[int]) -> list[Key]:
    found = dict.fromkeys(rows, ("", ""))
    for row, key in enumerate(store.images() if rows else ()):
        if row in found:
            found[row] = key
    return [found[row] for row in rows]


def _key(path: Path) -> Key:
    """An image file as reports read it."""
    whole = path.absolute()
    return str(whole.parent), whole.name


def _embedded(arguments: argparse.Namespace, store: Store, say: Say) -> tuple[npt.NDArray[np.float32], Path | None]:
    """The embeddings of the images (m, C), and the model that made them; None if there is no image."""
    import numpy as np

    if not arguments.images:
        if arguments.model is not None:
            raise UsageError("--model is to embed an IMAGE: give one, or leave it out")
        return np.empty((0, store.width), np.float32), None
    from runtime import load
    from runtime.contract.manifest import read_manifest
    from runtime.store.origin import sixteen_bit_of

    path = arguments.model or _recorded_model(store)
    unknown = _check_model(store, read_manifest(path), path)
    if unknown:
        say(unknown)
    verify_hash = options.verify_hash(argparse.Namespace(**{**vars(arguments), "model": path}))
    with load(path, arguments.provider, compute=arguments.compute, verify_hash=verify_hash) as model:
        kept = model.embed(
            arguments.images, on_error="skip", sixteen_bit="auto" if sixteen_bit_of(store.origin) == "auto" else "full"
        )
    for number, reason in kept.errors.items():
        raise InputError(f"{arguments.images[number]} can't be searched for: {reason}")
    return kept.embedding, path


def _recorded_model(store: Store) -> Path:
    """The store's model, if a file of its name lies where it may be expected; raises UsageError."""
    name = store.origin.get("model")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{store.path} does not say which model made it: give --model MODEL")
    for place in (Path(Path(name).name), store.path.absolute().parent / Path(name).name):
        if place.is_file():
            return place
    raise UsageError(f"{store.path} was made by {name}, which is not here or beside it: give --model MODEL")


def _check_model(store: Store, manifest: Manifest, path: Path) -> str | None:
    """Check that a model makes embeddings such as the store's; returns a warning if that is not known.

    What runs the model, what it computes in, and how JPEGs are scaled, may be another: that changes little.

    Raises:
        UsageError: it is another model, or prepares images otherwise.
    """
    from runtime.store.origin import compute_of, differences, origin_of, sixteen_bit_of

    if "model_sha256" not in store.origin:
        return f"{store.path} does not say which model made it: similarities mean nothing if {path} did not"
    there = store.origin
    here = origin_of(
        manifest, str(there.get("provider")), sixteen_bit_of(there), compute_of(there), draft=there.get("draft") is True
    )
    if found := differences(store.origin, here):
        raise UsageError(f"{path} is not the model that made {store.path}: {found}; give --model MODEL")
    return None


def _write_report(arguments: argparse.Namespace, store: Store, result: Mapping[str, Any], keys: Sequence[Key]) -> str:
    """Write the page; returns a line about it."""
    from runtime import report
    from runtime.contract.console import count
    from runtime.contract.keys import location
    from runtime.sources.at_hand import at_hand
    from runtime.store.origin import sixteen_bit_of

    groups: list[report.Group] = []
    shown = 0
    for key, query in zip(keys, result["queries"], strict=True):
        if shown >= MOST_SHOWN:
            break
        near = [report.Pictured((one["root"], one["path"]), f"{one['similarity']:.3f}") for one in query["neighbours"]]
        groups.append(report.Group(location(*key), [report.Pictured(key, "query", is_marked=True), *near][:MOST_SHOWN]))
        shown += len(groups[-1].images)
    notes = report_facts.notes(store)
    if left := len(keys) - len(groups):
        notes.append(f"The neighbours of {count(left, 'more image')} are not shown.")
    words = command_line("search", add_arguments, arguments)
    made = report.Report(
        title=f"Neighbours in {store.path.resolve().name}",
        lead=f"the {min(arguments.top, len(store)):,} nearest of {len(store):,} images by cosine",
        notes=notes,
        groups=groups,
        groups_title="Neighbours",
        facts=[("search", result["method"]), *report_facts.facts(words, store, {}, None)],
    )
    written = report.write_report(
        arguments.report, made, functools.partial(at_hand, sixteen_bit=sixteen_bit_of(store.origin))
    )
    return f"report {arguments.report}: {written.bytes / 1000:,.0f} kB, {written.images:,} images"
