"""A model on its way from its files to a parser: what was checked is what runs."""

from __future__ import annotations

from pathlib import Path

from runtime.backends.onnx_references import refers_to_other_files
from runtime.contract.errors import InputError, ManifestError
from runtime.contract.manifest import check_file, manifest_path, read_checked, read_manifest


class CheckedModel:
    """A model whose files were compared with its manifest.

    It holds the model file's bytes until a backend takes them, so that a file that is swapped after the check never
    runs. Only an ONNX model with external data is opened by its path: its libraries look for the data beside it.
    """

    def __init__(self, path: Path, *, check_hash: bool = True) -> None:
        """Read the manifest of `path` and check the model and its external data.

        Args:
            path: the model, its manifest beside it.
            check_hash: whether the files' SHA-256 are compared; see `verified_manifest`.

        Raises:
            ManifestError: the model, its external data or its manifest is missing, altered or too new.
        """
        self.path = path
        self.manifest = read_manifest(path)
        self.is_engine = self.manifest.builder.name != "onnx"
        self._content: bytes | None = None
        files = self.manifest.files
        if files.external_data is None or self.is_engine:
            self._content = read_checked(path, files.model, path, check_hash=check_hash)
        else:
            check_file(path, files.model, path, check_hash=check_hash)
        if files.external_data is not None:
            check_file(path.with_name(files.external_data.name), files.external_data, path, check_hash=check_hash)

    def take(self) -> bytes:
        """Return the model file's bytes, the very ones that were checked; only once, so that nobody keeps them."""
        content, self._content = self._content, None
        assert content is not None, "taken before, or a model with external data"
        return content

    def take_onnx(self, library: str) -> bytes | str:
        """Return the input of `library`'s parser: the bytes, or the path of a model with external data.

        Raises:
            ManifestError: the model refers to other files and its manifest names none: `library` would take them from
                the current folder.
            InputError: the path is not UTF-8, and libraries in C++ open no other.
        """
        if self._content is None:
            if str(self.path).encode(errors="replace").decode() != str(self.path):
                raise InputError(f"{self.path}: {library} opens no path that is not UTF-8; rename it")
            return str(self.path)
        if refers_to_other_files(self._content):
            name = manifest_path(self.path).name
            raise ManifestError(
                f"{self.path} keeps weights in another file, which {name} does not name: they were never checked; "
                "export it again"
            )
        return self.take()
