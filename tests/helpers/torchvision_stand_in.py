"""timm where torchvision does not install beside this project's torch: no model uses it, so a stand-in is imported."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any


class _Words(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Anything:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return _Anything()


class _StandIn(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012
    __version__ = "0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Words(name, (), {}) if name[0].isupper() else _Anything()


class _Finder:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        del path, target
        mine = name.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if mine else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        return _StandIn(spec.name)

    def exec_module(self, module: Any) -> None: ...


@contextlib.contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """While the block runs, `import torchvision` gives the stand-in, where the real one does not import."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        finder = _Finder()
    else:
        yield
        return
    import transformers  # noqa: F401  # it looks for torchvision once, and must not find the stand-in

    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in [one for one in sys.modules if one.split(".")[0] == "torchvision"]:
            del sys.modules[name]
