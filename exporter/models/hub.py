"""The Hugging Face hub: first its cache on this machine, which needs no network, then a download."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub.constants
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download

from exporter.models import checkpoint
from exporter.models.architecture import Architecture
from runtime.contract.errors import UsageError, WeightsError

CANT_REACH = "can't reach the Hugging Face hub"
"""scripts/quickstart looks for these words."""
MAX_REF_BYTES = 1000
_REPOSITORY = re.compile(r"models--[\w.-]+")


def load(arch: Architecture, reference: str) -> tuple[checkpoint.Entries, str]:
    """Content and commit of `REPO[@REVISION]`.

    A model that the hub's cache holds is read from there, without a look at the hub; the rest is downloaded into it.

    Raises:
        UsageError: that is not the name of a repository.
        WeightsError: it can't be had, or is another model.
    """
    found = fetch(reference, lambda config: checkpoint.check_config(config, arch))
    return checkpoint.read_checkpoint(found), found.name  # the cache calls a snapshot's folder after its commit


def fetch(
    reference: str,
    check: Callable[[Path], None],
    others: Sequence[str] = (),
    *,
    option: str = "--weights",
    with_weights: bool = True,
) -> Path:
    """The folder of `REPO[@REVISION]` in the hub's cache.

    Args:
        reference: the repository and its revision.
        check: is given `config.json`, before the weights are downloaded.
        others: files of which the first that the repository has is downloaded too.
        option: the option that names the repository, for messages.
        with_weights: whether the weights are needed too.

    Raises:
        UsageError: that is not the name of a repository.
        WeightsError: it can't be had; or what `check` raises.
    """
    repository, _, revision = reference.partition("@")
    found = _cached(repository, revision, _is_whole if with_weights else _has_config)
    if found is None:
        config = _download(repository, revision, "config.json", option)
        check(config)
        found = config.parent
        if with_weights:
            _download_weights(repository, found.name, option)
    elif (found / "config.json").is_file():
        check(found / "config.json")
    if not any((found / name).exists() for name in others):
        for name in others:
            with contextlib.suppress(WeightsError):
                _download(repository, found.name, name, option)
                break
    return found


def snapshot(folder: Path) -> Path | None:
    """The snapshot in a `models--...` folder of the hub's cache; None if the folder is no such folder.

    Raises:
        WeightsError: it holds none, or several and doesn't say which is the main one.
    """
    if folder.name == "snapshots":
        folder = folder.parent
    if not (_REPOSITORY.fullmatch(folder.resolve().name) and (folder / "snapshots").is_dir()):
        return None
    found = _snapshot(folder, "main")
    if found is None:
        names = sorted(one.name for one in (folder / "snapshots").iterdir())
        held = f"several snapshots ({', '.join(names[:3])})" if names else "no snapshot"
        raise WeightsError(
            f"{folder} holds {held} and none is its main one: give the folder of one, or hf:REPO@REVISION"
        )
    return found


def _cached(repository: str, revision: str, is_enough: Callable[[Path], bool]) -> Path | None:
    """The snapshot of a repository in the hub's cache, if what is needed of it is there; else None."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        if not (_REPOSITORY.fullmatch(folder.name) and folder.is_dir()):
            return None
        found = _snapshot(folder, revision or "main")
        return found if found is not None and is_enough(found) else None
    except OSError:  # another user's cache: the download says what is wrong
        return None


def _snapshot(folder: Path, revision: str) -> Path | None:
    """The snapshot of a commit or of a name in `refs`; if `main` has no file there, the only one."""
    snapshots = folder / "snapshots"
    if ".." in Path(revision).parts or Path(revision).is_absolute() or not snapshots.is_dir():
        return None
    commit, ref = revision, folder / "refs" / revision
    if ref.is_file() and ref.stat().st_size <= MAX_REF_BYTES:
        commit = ref.read_text(errors="replace").strip()  # some tools end it with a line break
    if commit and Path(commit).name == commit and (snapshots / commit).is_dir():
        return snapshots / commit
    all_of_them = [one for one in snapshots.iterdir() if one.is_dir()]
    return all_of_them[0] if revision == "main" and not ref.exists() and len(all_of_them) == 1 else None


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has weights, and if these are in shards, all of them."""
    for name in checkpoint.FOLDER_FILES:
        if (folder / name).is_file():
            return not name.endswith(".json") or all(
                (folder / one).is_file() for one in checkpoint.shards_of(folder / name)
            )
    return False


def _download_weights(repository: str, commit: str, option: str) -> None:
    """Download the weights of a commit: one safetensors file, else shards, else PyTorch's files."""
    single, index = "model.safetensors", "model.safetensors.index.json"
    for name in (single, index, "pytorch_model.bin", "pytorch_model.bin.index.json"):
        try:
            path = _download(repository, commit, name, option)
        except _NoSuchFileError:
            continue
        for shard in checkpoint.shards_of(path) if name.endswith(".json") else ():
            _download(repository, commit, shard, option)
        return
    raise WeightsError(f"{repository}@{commit} on the Hugging Face hub has no {single} or pytorch_model.bin")


class _NoSuchFileError(WeightsError):
    """The repository has no file of this name."""


def _download(repository: str, revision: str, filename: str, option: str) -> Path:
    name = f"{repository}@{revision}" if revision else repository
    try:
        return Path(hf_hub_download(repository, filename, revision=revision or None))
    except hub_errors.HFValidationError as error:
        raise UsageError(f"{option} hf:{name}: not the name of a repository, such as facebook/dinov2-base") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise WeightsError(f"the Hugging Face hub has no repository {repository}, or it is private") from error
    except hub_errors.RevisionNotFoundError as error:
        raise WeightsError(f"the Hugging Face hub has no revision {revision} of {repository}") from error
    except hub_errors.RemoteEntryNotFoundError as error:
        raise _NoSuchFileError(f"{name} on the Hugging Face hub has no file {filename}") from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled) as error:
        raise WeightsError(
            f"{CANT_REACH} and {name} is not in its cache: check the network, or "
            + (
                "give --weights a file (.pth, .safetensors), a folder, or random:SEED to try things out"
                if option == "--weights"
                else f"give {option} hf:FOLDER, a folder with its config.json and weights"
            )
        ) from error
    except (hub_errors.HfHubHTTPError, OSError) as error:
        raise WeightsError(f"the Hugging Face hub did not give {filename} of {name}: {error}") from error
    except Exception as error:  # its HTTP library's own, which is one or another by version
        raise WeightsError(f"{CANT_REACH} for {filename} of {name}: {error or type(error).__name__}") from error
