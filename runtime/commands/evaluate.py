"""`python -m runtime evaluate`: models and labelled data -> embeddings, cached -> k-means over seeds -> A/B table."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.clustering.options import MAX_SEED
from runtime.commands import options
from runtime.commands.command_line import command_line
from runtime.contract.console import add_threads, text
from runtime.contract.errors import CheckError, OutputFileError, UsageError, plain
from runtime.contract.machine import usable_cores
from runtime.images.options import add_selection, add_sixteen_bit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from runtime.backends.session import Session
    from runtime.contract.manifest import Manifest
    from runtime.embedding.embedder import Embedder
    from runtime.evaluation.cache import EmbeddedDataset
    from runtime.evaluation.datasets import Dataset
    from runtime.evaluation.presentation import DatasetResult

WHAT = "score how well models' embeddings cluster, on labelled data, by the paper's protocol"
EXAMPLES = """examples:
  %(prog)s itae.onnx --data cifar10:cifar-10-binary.tar.gz
  %(prog)s plain.onnx itae.onnx reg.onnx --data cifar100:cifar-100-binary/ --data stl10:stl10_binary/ --out scores/
  %(prog)s plain.onnx itae.onnx --data folder:photos/ --limit 2000 --json --exclude 'unsorted/'

NAME is cifar10, cifar100 (fine labels), cifar100-coarse or stl10: the test split of the official binary version, its
folder or tar.gz, or parquet; tiny-imagenet: tiny-imagenet-200, whose val folder is taken; parquet: a column of images
and one of labels; folder: a folder or tar with one folder for each class.

k-means with k = the number of classes clusters the embeddings, as they are and divided by their L2 norm; each seed is
the best of --n-init starts. ACC (Hungarian matching), NMI and ARI: mean and standard deviation over the seeds. Every
other model is compared with the first, over the seeds and by a bootstrap over the images. Images that one of the models
can't embed are reported, and left out for all.

exit code: 0 if the models were evaluated, 1 if a model could embed no image, 2 for bad use or data that is damaged"""

MAX_SEEDS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="+", type=options.path, help="X.onnx or X.engine; the first is the baseline"
    )
    parser.add_argument(
        "--data",
        metavar="NAME:PATH",
        action="append",
        required=True,
        type=text,
        help="a labelled data set; may be given several times",
    )
    parser.add_argument("--seeds", metavar="N", type=int, default=10, help="clusterings each (default: %(default)s)")
    what = "the first of the seeds, also of the images that --limit takes"
    parser.add_argument("--seed", metavar="N", type=int, default=0, help=f"{what} (default: %(default)s)")
    what = "k-means++ starts of each clustering, the best of which is kept"
    parser.add_argument("--n-init", metavar="N", type=int, default=10, help=f"{what} (default: %(default)s)")
    parser.add_argument(
        "--limit", metavar="N", type=int, help="so many images of a data set, each class with its share"
    )
    parser.add_argument("--out", metavar="DIR", type=options.path, help="folder for scores.parquet and summary.json")
    what = "write a page that opens offline: the tables, and the best model's clusters, map and classes"
    parser.add_argument("--report", metavar="FILE.html", type=options.path, help=what)
    parser.add_argument("--note", metavar="TEXT", default="", help="a remark that stands on that page")
    cache = parser.add_mutually_exclusive_group()
    where = "where embeddings are kept between runs; nowhere if the default can't be written (default: "
    where += "$XDG_CACHE_HOME/itae/evaluate)"
    cache.add_argument("--cache", metavar="DIR", type=options.path, help=where)
    cache.add_argument("--no-cache", action="store_true", help="keep no embeddings")
    parser.add_argument("--batch", metavar="N", type=int, help="images to run at a time (default: 8; an engine's own)")
    add_sixteen_bit(parser)
    add_selection(parser, "folder:PATH")
    options.add_provider(parser)
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the models of `arguments.model`; gives the exit code.

    Raises:
        UsageError: an option has no meaning here.
        InputError: a data set is not what it should be, or its embeddings can't be clustered.
        ManifestError, BackendError: a model can't be read, or not be run here.
        CheckError: a model could embed no image.
    """
    _check(arguments)
    import json

    from runtime.backends.session import check_names, chosen_batch
    from runtime.commands import evaluate_report
    from runtime.contract.manifest import read_manifest
    from runtime.embedding.stream import silence_pillow
    from runtime.evaluation.datasets import open_dataset
    from runtime.evaluation.presentation import as_json, as_text
    from runtime.evaluation.scores import KIND, SCORES, scores_parquet
    from runtime.sources import Selection
    from runtime.store.result_folder import publish_result, result_folder

    silence_pillow()
    names = _names(arguments.model)
    manifests = [read_manifest(model) for model in arguments.model]  # their files are checked where they are loaded
    for manifest in manifests:
        check_names(manifest, ["embedding"])
        chosen_batch(manifest, arguments.batch)
    if arguments.provider != "auto" and not any(manifest.builder.name == "onnx" for manifest in manifests):
        raise UsageError(f"--provider {arguments.provider} is for ONNX models, and {arguments.model[0]} is an engine")
    for model, manifest in zip(arguments.model, manifests, strict=True):
        options.what_runs(arguments, model, manifest)  # so that what can't run is refused at once
    datasets = _named(open_dataset(data, Selection.from_arguments(arguments)) for data in arguments.data)
    for dataset in datasets:
        for remark in dataset.remarks:
            _say(f"{dataset.name}: {remark}")
        for problem in dataset.problems[:1]:
            _say(f"{dataset.name}: {len(dataset.problems)} parts can't be read; {problem.path or 'it'} {problem.error}")
    with result_folder(arguments.out, KIND) if arguments.out else contextlib.nullcontext() as work:
        embedded = _embed_all(arguments, names, manifests, datasets)
        results = [_evaluate(arguments, list(by_model)) for by_model in zip(*embedded, strict=True)]
        summary = as_json(results)
        if work is not None:
            publish_result(arguments.out, work, KIND, [(SCORES, scores_parquet(results))], summary)
        sys.stdout.write(f"{json.dumps(summary, indent=2)}\n" if arguments.json else as_text(results))
        sys.stdout.flush()  # before the report, which takes a while and may fail
        if arguments.report:
            _say(evaluate_report.write(arguments, results, command_line("evaluate", add_arguments, arguments)))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.seeds <= MAX_SEEDS:
        raise UsageError(f"--seeds {arguments.seeds}: must be from 1 to {MAX_SEEDS}")
    last = MAX_SEED + 1 - arguments.seeds
    if not 0 <= arguments.seed <= last:
        raise UsageError(f"--seed {arguments.seed}: must be from 0 to {last}")
    if arguments.report is not None:
        from runtime.report import check_target

        check_target(arguments.report, to_be_made=arguments.out)
    if arguments.note and arguments.report is None:
        raise UsageError("--note is for the page of --report")
    chosen = any(getattr(arguments, name) is not None for name in ("include", "exclude", "follow_links"))
    if chosen and not any(text.startswith("folder:") for text in arguments.data):
        raise UsageError("--include, --exclude and --follow-links are for --data folder:PATH")
    for name, value in (("--n-init", arguments.n_init), ("--limit", arguments.limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: must be 1 or more")


def _names(models: list[Path]) -> list[str]:
    """The display name of each model: its file's name, or its path if two files have the same name.

    Raises:
        UsageError: two models are the same file.
    """
    _refuse_twice("MODEL", [(model.resolve(), str(model)) for model in models])
    return _told_apart([model.name for model in models], list(map(str, models)))


def _named(opened: Iterable[Dataset]) -> list[Dataset]:
    """The data sets, each by a name of its own; raises UsageError where two are the same."""
    datasets = list(opened)
    places = [f"{one.kind}:{one.path}" for one in datasets]
    _refuse_twice("--data", [(place, place) for place in places])
    names = _told_apart([one.name for one in datasets], places)
    return [dataclasses.replace(one, name=name) for one, name in zip(datasets, names, strict=True)]


def _refuse_twice(what: str, given: Sequence[tuple[Path | str, str]]) -> None:
    """Refuse a second of what is the same; `given` has what a thing is, and what the user calls it."""
    seen = set()
    for one, name in given:
        if one in seen:
            raise UsageError(f"{what} {name} is given twice: it would stand beside itself")
        seen.add(one)


def _told_apart(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """The short names, on a line each; the long ones where two have the same."""
    from runtime.sources.names import printable

    chosen = (one if short.count(one) == 1 else other for one, other in zip(short, long, strict=True))
    return [" ".join(printable(name).split()) for name in chosen]


def _embed_all(
    arguments: argparse.Namespace, names: list[str], manifests: list[Manifest], datasets: list[Dataset]
) -> list[list[EmbeddedDataset]]:
    """The embeddings by model, then by data set; one model is in memory at a time, and none that has nothing to do."""
    from runtime.evaluation.datasets.dataset import stratified

    rows = [stratified(one.labels, arguments.limit or len(one), arguments.seed) for one in datasets]
    chosen = list(zip(datasets, rows, strict=True))
    with contextlib.ExitStack() as stack:
        if (found := None if arguments.no_cache else _cache(arguments.cache)) is None:
            cache = stack.enter_context(_no_cache())
            kept = "no embedding is kept"
        else:
            cache = found
            _say(f"embeddings are kept in {cache}")
            kept = f"what was embedded is kept in {cache}, the same command goes on"
        try:
            return [
                _embed_by(arguments, model, name, manifest, chosen, cache)
                for model, name, manifest in zip(arguments.model, names, manifests, strict=True)
            ]
        except KeyboardInterrupt:
            raise KeyboardInterrupt(kept) from None


def _cache(given: Path | None) -> Path | None:
    """Return the folder where embeddings are kept, made; None, with a line that says why, if the default can't be.

    Raises:
        OutputFileError: the folder that was given can't be made or written.
    """
    from runtime.evaluation.cache import default_cache, make_cache

    try:
        make_cache(cache := given or default_cache())
    except OutputFileError as error:
        if given is not None:
            raise OutputFileError(f"{error}: give another --cache DIR, or --no-cache") from error
        _say(f"warning: {error}: no embedding is kept; --cache DIR keeps them there")
        return None
    except UsageError as error:
        _say(f"warning: {error}; no embedding is kept")
        return None
    return cache


@contextlib.contextmanager
def _no_cache() -> Iterator[Path]:
    """A folder for the embeddings of this run.

    Raises:
        OutputFileError: it can't be made.
    """
    import tempfile

    try:
        folder = tempfile.TemporaryDirectory(prefix="itae-evaluate-")
    except OSError as error:
        raise OutputFileError(
            f"can't make a temporary folder for embeddings ({error.strerror}): give --cache DIR, or set TMPDIR"
        ) from error
    with folder as path:
        yield Path(path)


def _embed_by(
    arguments: argparse.Namespace,
    model: Path,
    name: str,
    manifest: Manifest,
    chosen: list[tuple[Dataset, npt.NDArray[np.intp]]],
    cache: Path,
) -> list[EmbeddedDataset]:
    """The chosen rows of each data set by one model."""
    from runtime.contract.progress import progress
    from runtime.evaluation.cache import embed_dataset

    # No --no-verify-hash here: embeddings are kept under the hash that the manifest claims.
    provider, compute, choice = options.what_runs(arguments, model, manifest)
    batch = choice.batch if choice is not None and arguments.batch is None else arguments.batch
    found = []
    with _loaded_when_asked(model, provider, compute, batch, arguments.sixteen_bit) as embedder:
        for dataset, rows in chosen:
            load = functools.partial(embedder, f"embedding {dataset.name} by {name}")
            with progress(len(rows)) as shown:
                one = embed_dataset(
                    name, manifest, provider, dataset, rows, cache, load, shown, arguments.sixteen_bit, compute
                )
            left = f", {len(one.left_out):,} can't be embedded" if one.left_out else ""
            _say(f"{dataset.name}, {name}: {one.computed:,} images embedded in {one.seconds:.1f} s{left}")
            for note, count in one.notes.items():
                _say(f"{dataset.name}: {note.text}: {count:,}")
            found.append(one)
    return found


@contextlib.contextmanager
def _loaded_when_asked(
    model: Path, provider: str, compute: str, batch: int | None, sixteen_bit: str
) -> Iterator[Callable[[str], Embedder]]:
    """A function that returns the loaded model and reports why it is needed; the first call loads it."""
    from runtime.backends import open_session
    from runtime.embedding.stream import embed_stream

    with contextlib.ExitStack() as stack:

        @functools.cache
        def session() -> Session:
            return stack.enter_context(contextlib.closing(open_session(model, provider, compute=compute)))

        def embedder(why: str) -> Embedder:
            _say(why)
            return functools.partial(
                embed_stream, session(), batch=batch, workers=usable_cores(), sixteen_bit=sixteen_bit
            )

        yield embedder


def _evaluate(arguments: argparse.Namespace, by_model: list[EmbeddedDataset]) -> DatasetResult:
    """Cluster and compare the embeddings of one data set."""
    from runtime.evaluation.cache import of_common_images
    from runtime.evaluation.presentation import DatasetResult
    from runtime.evaluation.protocol import NORMALISATIONS, compare, evaluate

    dataset = by_model[0].dataset
    chosen = len(by_model[0].rows) + len(by_model[0].left_out)
    common = of_common_images(by_model)
    if not len(common[0].rows):
        raise CheckError(f"{dataset.name}: there is no image that every model could embed")
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    evaluations, comparisons = [], []
    for normalisation in NORMALISATIONS:
        found = [evaluate(one, normalisation, seeds, n_init=arguments.n_init, tell=_say) for one in common]
        evaluations += found
        comparisons += [compare(one, found[0]) for one in found[1:]]
    _say(f"{dataset.name}: clustered in {sum(one.seconds for one in evaluations):.1f} s")
    return DatasetResult(chosen, tuple(common), tuple(evaluations), tuple(comparisons))


def _say(line: str) -> None:
    sys.stderr.write(f"{plain(line)}\n")
    sys.stderr.flush()
