"""`python -m runtime export`: a folder of embeddings -> one array with its lines."""

from __future__ import annotations

import argparse
import json
import sys

from runtime.commands import options

WHAT = "write embeddings as one numpy array, with a line of JSON for each row"
EXAMPLES = """examples:
  %(prog)s embeddings/ embeddings.npy
  %(prog)s embeddings/ /data/embeddings.npy --quiet --json

X.npy is (n, C) float32, to be read with numpy.load, also mapped into memory. X.jsonl beside it is UTF-8 with a line
{"row": i, "root": ..., "path": ...} for each row, in order. A pair that lies there is replaced as a whole.
`cluster` takes X.npy in the place of a folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_store(parser)
    parser.add_argument("array", metavar="X.npy", type=options.path, help="file to write, and X.jsonl beside it")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    options.add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the embeddings in `arguments.embeddings` to `arguments.array`; returns the exit code.

    Raises:
        UsageError, InputError, OutputFileError: see `runtime.store.array_pair.export_array`.
    """
    from runtime.contract.console import count
    from runtime.contract.progress import NowAndThen
    from runtime.store.array_pair import export_array, lines_path

    say = options.teller(arguments)
    store = options.open_store(arguments.embeddings, say, "exporting")
    export_array(store, arguments.array, NowAndThen(say))
    lines = lines_path(arguments.array)
    if arguments.json:
        summary = {"array": str(arguments.array), "lines": str(lines), "rows": len(store), "width": store.width}
        sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    else:
        sys.stdout.write(f"{count(len(store), 'embedding')} of width {store.width}: {arguments.array} and {lines}\n")
    return 0
