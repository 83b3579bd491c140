"""`python -m runtime verify`: golden sample -> backend -> comparison -> table, JSON, JUnit XML."""

from __future__ import annotations

import argparse
import json
import sys

from runtime.commands import options
from runtime.errors import ItaeError, ParityError, UsageError

WHAT = "replay the golden sample of a model"
EXAMPLES = """examples:
  %(prog)s itae.onnx
  %(prog)s itae.onnx --junit report.xml --json

exit code: 0 if the model does what the manifest promises, 1 if it is off, 2 if no backend here can run it"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_model(parser)
    parser.add_argument("--junit", metavar="FILE", type=options.path, help="also write a JUnit XML report")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options.add_provider(parser)
    options.add_no_verify_hash(parser)


def run(arguments: argparse.Namespace) -> int:
    """Verify `arguments.model`; gives the exit code.

    Raises:
        UsageError: --junit names a file of the model.
        ParityError: the model is off.
        ManifestError, BackendError: it can't be read, or not be run here.
    """
    from runtime.atomic import write_atomically
    from runtime.manifest import manifest_path, parity_path
    from runtime.verify import as_json, as_junit, as_text, verify

    model, junit = arguments.model, arguments.junit
    own = (model, manifest_path(model), parity_path(model), model.with_name(f"{model.name}.data"))
    if junit is not None and junit.resolve() in [path.resolve() for path in own]:
        raise UsageError(f"--junit {junit} is a file of the model itself: name another")
    try:
        result = verify(model, arguments.provider, verify_hash=options.verify_hash(arguments))
    except ItaeError as error:
        if junit is not None:
            write_atomically(junit, as_junit(model, error))
        raise
    if junit is not None:
        write_atomically(junit, as_junit(model, result))
    text = json.dumps(as_json(result), indent=2) if arguments.json else as_text(result)
    sys.stdout.write(f"{text}\n")
    if not result.passed:
        raise ParityError(f"{model} failed: {'; '.join(result.failures)}")
    return 0
