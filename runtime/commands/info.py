"""`python -m runtime info`: a model's manifest as JSON, after its files were checked."""

from __future__ import annotations

import argparse
import sys

from runtime.commands import options

WHAT = "print the manifest of a model as JSON"
EXAMPLES = """examples:
  %(prog)s itae.onnx
  %(prog)s itae.engine | python -c 'import json, sys; print(json.load(sys.stdin)["options"])'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    options.add_model(parser)
    options.add_no_verify_hash(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the manifest; returns the exit code.

    Raises:
        ManifestError: the model, its external data or its manifest is missing, altered or too new.
    """
    from runtime.contract.manifest import verified_manifest

    manifest = verified_manifest(arguments.model, options.verify_hash(arguments))
    sys.stdout.write(manifest.to_json().decode())
    return 0
