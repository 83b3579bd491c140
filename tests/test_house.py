"""The house: which package may import which, no circles, one meaning for each module's name."""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from pathlib import Path

import pytest
from loaded import HEAVY, loaded_after

from runtime.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
_BELOW = {"contract", "images", "backends", "sources", "store", "embedding", "clustering"}
RUNTIME = {
    "contract": set(),
    "images": {"contract"},
    "backends": {"contract", "images"},
    "sources": {"contract", "images"},
    "store": {"contract", "images"},
    "embedding": {"contract", "images", "backends", "sources", "store"},
    "clustering": {"contract", "store"},
    "evaluation": _BELOW,
    "checks": _BELOW,
    "report": {"contract", "images"},
    "serving": {"contract", "images", "clustering"},
    "commands": {*_BELOW, "evaluation", "checks", "report", "serving"},
}
"""By package of `runtime`: the packages that it may import."""
EXPORTER = {
    "graph_facts": set(),
    "declaration": set(),
    "image_processor": set(),
    "models": {"graph_facts", "image_processor"},
    "methods": {"graph_facts", "declaration", "surgery"},
    "options": {"declaration", "methods", "models", "graph_facts"},
    "trace": {"graph_facts"},
    "surgery": {"graph_facts"},
    "foreign": {"surgery", "methods", "declaration", "steps", "build", "image_processor"},
    "proof": {"options", "methods", "graph_facts"},
    "build": {"options", "graph_facts"},
    "intake": set(),
    "quantization": {"surgery", "intake"},
    "calibration": {
        "options",
        "declaration",
        "methods",
        "models",
        "graph_facts",
        "pipeline",
        "steps",
        "intake",
        "foreign",
    },
}
"""By package or module of `exporter`: what else of it they may import; `pipeline` and `__main__` know the order."""
SHARED = ("contract", "images")
"""Packages of `runtime` that `exporter` may import."""
SHARED_MORE = {
    "calibration": (*SHARED, "sources", "clustering", "evaluation", "report"),
    "intake": (*SHARED, "sources"),
    "quantization": (*SHARED, "clustering"),
}
"""The same for those that look at the user's images and cluster them."""
SAME_MEANING = {"options": "the options of a package or a command, as data"}
"""Names that several modules have, since they mean the same in each; a command's file is called as the command."""


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs, anywhere in it, not for its types only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # `from package import module` imports the module; `from module import name` the module itself.
            found |= {module_of(f"{node.module}.{alias.name}") or node.module for alias in node.names}
    return found


def module_of(name: str) -> str | None:
    place = ROOT / name.replace(".", "/")
    return name if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file() else None


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    """`runtime.store.writer` -> `store`; empty for what lies in no package."""
    return [*name.split("."), ""][1]


HOUSE = {name_of(path): imports(path) for package in ("runtime", "exporter") for path in files(package)}


@pytest.mark.parametrize("room", RUNTIME)
def test_a_package_of_runtime_imports_only_what_the_plan_allows(room):
    for module, used in HOUSE.items():
        if module.startswith(f"runtime.{room}."):
            rooms = {room_of(one) for one in used if one.split(".")[0] == "runtime"} - {room}
            if room in ("commands", "serving"):
                rooms.discard("")  # `runtime.load`
            assert rooms <= RUNTIME[room], f"{module} imports {rooms - RUNTIME[room]}"


def test_every_package_of_runtime_is_in_the_plan():
    assert {path.name for path in (ROOT / "runtime").iterdir() if (path / "__init__.py").is_file()} == set(RUNTIME)


@pytest.mark.parametrize("room", EXPORTER)
def test_a_station_of_the_exporter_imports_only_what_the_plan_allows(room):
    for module, used in HOUSE.items():
        if f"{module}.".startswith(f"exporter.{room}."):
            rooms = {room_of(one) for one in used if one.split(".")[0] == "exporter"} - {room}
            assert rooms <= EXPORTER[room], f"{module} imports {rooms - EXPORTER[room]}"


def test_the_exporter_imports_only_shared_packages_of_runtime():
    for module, used in HOUSE.items():
        if module.split(".")[0] == "exporter":
            allowed = SHARED_MORE.get(room_of(module), SHARED)
            for one in used:
                assert one.split(".")[0] != "runtime" or room_of(one) in allowed, f"{module} imports {one}"


def test_the_runtime_never_imports_the_exporter():
    for module, used in HOUSE.items():
        if module.split(".")[0] == "runtime":
            assert not {one for one in used if one.split(".")[0] == "exporter"}, module


def test_a_methods_reference_and_graph_share_only_its_options():
    for module, used in HOUSE.items():
        if module.startswith("exporter.methods.itae.graph"):
            assert not {one for one in used if one.startswith("exporter.methods.itae.reference")}, module
            assert not {one for one in used if one.split(".")[0] in ("torch", "transformers")}, module
        if module.startswith("exporter.methods.itae.reference"):
            assert not {one for one in used if "surgery" in one or "graph" in one or one.startswith("onnx")}, module


def test_the_surgery_knows_no_torch_and_no_method():
    for module, used in HOUSE.items():
        if module.startswith("exporter.surgery"):
            heavy = ("torch", "transformers", "exporter.methods", "exporter.models")
            assert not {one for one in used if one.startswith(heavy)}, module


def test_no_module_imports_itself_in_a_circle():
    graph = {module: {one for one in used if one in HOUSE} - {module} for module, used in HOUSE.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_package_imports_itself_in_a_circle():
    rooms: defaultdict[str, set[str]] = defaultdict(set)
    for module, used in HOUSE.items():
        mine = ".".join(module.split(".")[:2])
        rooms[mine] |= {".".join(one.split(".")[:2]) for one in used if one in HOUSE} - {mine}
    try:
        graphlib.TopologicalSorter(rooms).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_modules_name_has_one_meaning():
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for module in HOUSE:
        parent, _, name = module.rpartition(".")
        if parent and not name.startswith("__") and parent != "runtime.commands" and name not in SAME_MEANING:
            homes[name].append(module)
    assert not {name: places for name, places in homes.items() if len(places) > 1}


@pytest.mark.parametrize("path", [*files("runtime"), *files("exporter")], ids=name_of)
def test_every_module_says_what_it_is_for(path):
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said
    assert not said.startswith("Of ")


@pytest.mark.parametrize(
    ("statement", "more"),
    [
        ("import runtime", ("numpy", "PIL", "pydantic")),
        ("import exporter, runtime.contract.manifest", ()),
        ("import runtime.__main__", ()),
    ],
    ids=str,
)
def test_importing_a_package_stays_light(statement, more):
    loaded = loaded_after(statement)
    assert "runtime" in loaded
    assert loaded.isdisjoint([*HEAVY, *more])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_of_a_command_loads_nothing_heavy(command):
    argv = [*filter(None, [command]), "--help"]
    loaded = loaded_after(
        "from runtime.__main__ import main\nimport contextlib\n"
        f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr): main({argv})"
    )
    assert "runtime.__main__" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("path", files("runtime"), ids=name_of)
def test_a_module_of_runtime_imports_torch_never_and_heavy_libraries_in_functions(path):
    allowed = {"torch"} if path.name == "torch_points.py" else set()  # which runs on a GPU where it is asked for
    top = {one.split(".")[0] for one in HOUSE[name_of(path)]}
    assert top.isdisjoint({"torch", "transformers", "onnx"} - allowed)
    for node in ast.parse(path.read_text()).body:
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {one.split(".")[0] for one in names}.isdisjoint(HEAVY)
