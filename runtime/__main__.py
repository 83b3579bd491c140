"""The command: embed, cluster, verify, info. `python -m runtime`, or `itae` where it is installed."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from runtime import cluster
from runtime.backends import PROVIDERS
from runtime.command import Parser, run
from runtime.errors import CheckError, ItaeError, ParityError, UsageError

# Heavy imports come after parsing, in the function that needs them.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (`sys.argv` where None) and give its exit code.

    0: done; 1: nothing could be embedded, or a check failed; 2: bad use, bad input, a lack of this machine.
    """
    arguments = argparse.Namespace(verbose="--verbose" in (sys.argv[1:] if argv is None else argv))

    def body() -> int:
        parser().parse_args(argv, arguments)
        return int(arguments.run(arguments))

    return run("runtime", body, verbose=lambda: arguments.verbose)


def parser() -> Parser:
    """The parser of every subcommand; `run` of what it parses is the function to call."""
    program = Path(sys.argv[0]).name
    top = Parser(
        prog="python -m runtime" if program in ("__main__.py", "") else program,
        description="Embed images with a model of `exporter`, cluster the embeddings, verify the model.",
        epilog="examples:\n"
        "  %(prog)s embed itae.onnx photos/ --out embeddings/\n"
        "  %(prog)s cluster embeddings/ --k 10 --out clusters/\n"
        "  %(prog)s verify itae.onnx\n"
        "  %(prog)s info itae.onnx",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"itae {metadata.version('itae')}")
    top.add_argument("--verbose", action="store_true", help=_VERBOSE)
    top.set_defaults(run=_choose)
    commands = top.add_subparsers(metavar="COMMAND")
    _add(commands, "embed", "embed images into parquet files", _embed_arguments, _embed, _EMBED_EXAMPLES)
    _add(
        commands,
        "cluster",
        "cluster embeddings by k-means",
        cluster.add_arguments,
        cluster.run,
        _CLUSTER_EXAMPLES,
    )
    _add(
        commands,
        "verify",
        "replay the golden sample of a model",
        _verify_arguments,
        _verify,
        _VERIFY_EXAMPLES,
    )
    _add(commands, "info", "print the manifest of a model as JSON", _info_arguments, _info, _INFO_EXAMPLES)
    return top


_VERBOSE = "show the traceback of an error"

_EMBED_EXAMPLES = """examples:
  %(prog)s itae.onnx photos/ --out embeddings/
  %(prog)s itae.onnx cat.jpg more/ --out embeddings/ --batch 32 --provider cuda

DIR gets part-00000.parquet and so on (root, path, embedding), and errors.jsonl with what could not be read.
Embeddings that lie in DIR already are replaced when the new ones are complete. Folders are searched through;
links to folders in them are not followed. JPEG, PNG, WebP, BMP, TIFF and GIF (its first frame) are read.

exit code: 0 if any image was embedded, 1 if none could be, 2 for bad use"""

_CLUSTER_EXAMPLES = """examples:
  %(prog)s embeddings/ --k 10 --out clusters/
  %(prog)s embeddings/ --k 10 --out clusters/ --labels folders"""

_VERIFY_EXAMPLES = """examples:
  %(prog)s itae.onnx
  %(prog)s itae.onnx --junit report.xml --json

exit code: 0 if the model does what the manifest promises, 1 if it is off, 2 if no backend here can run it"""

_INFO_EXAMPLES = """examples:
  %(prog)s itae.onnx
  %(prog)s itae.engine | python -c 'import json, sys; print(json.load(sys.stdin)["options"])'"""


def _add(
    commands: argparse._SubParsersAction[Parser],  # argparse has no other name for it
    name: str,
    what: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    call: Callable[[argparse.Namespace], int],
    examples: str,
) -> None:
    sub = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(sub)
    sub.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help=_VERBOSE)
    sub.set_defaults(run=call)


def _choose(arguments: argparse.Namespace) -> int:
    raise UsageError("say what to do: embed, cluster, verify or info; see `python -m runtime --help`")


def _embed_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL", type=_path, help="X.onnx or X.engine, its manifest beside it")
    sub.add_argument("images", metavar="IMAGES", nargs="+", type=_path, help="image files and folders of them")
    sub.add_argument("--out", metavar="DIR", type=_path, required=True, help="folder for the embeddings")
    sub.add_argument("--batch", metavar="N", type=int, help="images to run at a time (default: 8; an engine's own)")
    _provider_argument(sub)


def _path(text: str) -> Path:
    if not text:  # of an unset variable, say: Path would take it for the current folder
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def _provider_argument(sub: argparse.ArgumentParser) -> None:
    what = "what runs an ONNX model; auto is ONNX Runtime on the CPU"
    sub.add_argument("--provider", choices=PROVIDERS, default="auto", help=f"{what} (default: %(default)s)")


def _embed(arguments: argparse.Namespace) -> int:
    from runtime import load
    from runtime.embedder import embed_files
    from runtime.images import find_images
    from runtime.progress import progress

    # Pillow warns and logs of oddities in pictures that it reads; what it can't read is told by us.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    start = time.monotonic()
    found = find_images(arguments.images)
    total = len(found.files) + len(found.unreadable)
    with load(arguments.model, arguments.provider) as model, progress(total) as advance:
        result = embed_files(model, found, arguments.out, arguments.batch, advance)
    bad = len(result.unreadable)
    if result.images == 0:
        first = result.unreadable[0]
        where = f"{first.root}/{first.path}: {first.error}"
        raise CheckError(f"none of {bad} images could be read, no embedding was written; the first: {where}")
    _say(f"embedded {result.images} images into {arguments.out} in {time.monotonic() - start:.1f} s")
    if bad:
        _say(f"{bad} could not be read: see {arguments.out / 'errors.jsonl'}")
    return 0


def _verify_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL", type=_path, help="X.onnx or X.engine, its manifest beside it")
    sub.add_argument("--junit", metavar="FILE", type=_path, help="also write a JUnit XML report")
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _provider_argument(sub)


def _verify(arguments: argparse.Namespace) -> int:
    from runtime.atomic import write_atomically
    from runtime.manifest import manifest_path, parity_path
    from runtime.verify import as_json, as_junit, as_text, verify

    model, junit = arguments.model, arguments.junit
    own = (model, manifest_path(model), parity_path(model), model.with_name(f"{model.name}.data"))
    if junit is not None and junit.resolve() in [path.resolve() for path in own]:
        raise UsageError(f"--junit {junit} is a file of the model itself: name another")
    try:
        result = verify(arguments.model, arguments.provider)
    except ItaeError as error:
        if arguments.junit is not None:
            write_atomically(arguments.junit, as_junit(arguments.model, error))
        raise
    if arguments.junit is not None:
        write_atomically(arguments.junit, as_junit(arguments.model, result))
    print(json.dumps(as_json(result), indent=2) if arguments.json else as_text(result))  # noqa: T201
    if not result.passed:
        raise ParityError(f"{arguments.model} failed: {'; '.join(result.failures)}")
    return 0


def _info_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="MODEL", type=_path, help="X.onnx or X.engine, its manifest beside it")


def _info(arguments: argparse.Namespace) -> int:
    from runtime.manifest import verified_manifest

    print(verified_manifest(arguments.model).to_json().decode(), end="")  # noqa: T201
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
