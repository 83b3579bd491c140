"""`python -m runtime embed`: images -> model -> folder of embeddings."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings

from runtime.commands import options
from runtime.errors import CheckError

WHAT = "embed images into parquet files"
EXAMPLES = """examples:
  %(prog)s itae.onnx photos/ --out embeddings/
  %(prog)s itae.onnx cat.jpg more/ --out embeddings/ --batch 32 --provider cuda

DIR gets part-00000.parquet and so on (root, path, embedding), and errors.jsonl with what could not be read.
Embeddings that lie in DIR already are replaced when the new ones are complete. Folders are searched through;
links to folders in them are not followed. JPEG, PNG, WebP, BMP, TIFF and GIF (its first frame) are read.

exit code: 0 if any image was embedded, 1 if none could be, 2 for bad use"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_model(parser)
    parser.add_argument("images", metavar="IMAGES", nargs="+", type=options.path, help="image files, folders of them")
    parser.add_argument("--out", metavar="DIR", type=options.path, required=True, help="folder for the embeddings")
    parser.add_argument("--batch", metavar="N", type=int, help="images to run at a time (default: 8; an engine's own)")
    options.add_provider(parser)


def run(arguments: argparse.Namespace) -> int:
    """Embed `arguments.images` into `arguments.out`; gives the exit code.

    Raises:
        ItaeError: see `runtime.embedder.embed_files`.
    """
    from runtime import load
    from runtime.embedder import embed_files
    from runtime.progress import progress
    from runtime.sources import open_sources

    # Pillow warns and logs of oddities in pictures that it reads; what it can't read is told by us.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    start = time.monotonic()
    sources = open_sources([str(path) for path in arguments.images])
    total = sources.total or 0
    with load(arguments.model, arguments.provider) as model, progress(total) as advance:
        result = embed_files(model, sources, arguments.out, arguments.batch, advance)
    bad = len(result.unreadable)
    if result.images == 0:
        first = result.unreadable[0]
        where = f"{first.root}/{first.path}: {first.error}"
        raise CheckError(f"none of {bad} images could be read, no embedding was written; the first: {where}")
    sys.stderr.write(f"embedded {result.images} images into {arguments.out} in {time.monotonic() - start:.1f} s\n")
    if bad:
        sys.stderr.write(f"{bad} could not be read: see {arguments.out / 'errors.jsonl'}\n")
    return 0
