"""The house keeps its walls: no room imports what stands further right, and nothing goes in circles."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "actfer_jax"

# Docs: docs/architecture.md. A room may import these rooms, and what they may import.
ROOMS = {
    "leaves": [],
    "faces": ["leaves"],
    "agent": ["faces"],
    "data": ["agent"],
    "rl": ["agent"],
    "parallel": ["leaves"],
    "models": ["parallel"],
    "rollout": ["agent", "models"],
    "episodes": ["rollout"],
    "runs": ["parallel"],
    "viewer": ["episodes", "runs"],
    "evaluation": ["episodes", "rl", "data", "runs"],
    "training": ["evaluation"],
    "studies": ["evaluation"],
    "integrations": ["evaluation"],
    "compile_check": ["training"],
    "doors": ["training", "studies", "compile_check", "viewer"],
}
LEAVES = ("__init__", "cli", "config", "config_help", "errors", "facs", "files", "outputs", "plugins", "progress")
DOORS = (
    "__main__",
    "train",
    "evaluate",
    "table",
    "analyze",
    "diff",
    "export",
    "rehearse",
    "traces",
    "browse",
    "study",
    "make_demo",
)
LONGEST_DOOR, LONGEST_FILE, LONGEST_FUNCTION = 80, 500, 100


def name_of(path: Path) -> str:
    """`actfer_jax/models/config.py` is models.config, `actfer_jax/models/__init__.py` is models.__init__."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    first, *rest = module.split(".")
    return first if rest else "leaves" if first in LEAVES else "doors"


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in it."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relative to itself"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "actfer_jax":
                yield module_of(name.split(".")[1:])


def module_of(parts: list[str]) -> str:
    """The module that has, or is, what is imported by a dotted name."""
    for end in range(len(parts), -1, -1):
        for candidate in (parts[:end], [*parts[:end], "__init__"]):
            if ".".join(candidate) in MODULES:
                return ".".join(candidate)
    raise AssertionError(f"there is no module actfer_jax.{'.'.join(parts)}")


def allowed(room: str) -> set[str]:
    return {room}.union(*(allowed(other) for other in ROOMS[room]))


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_it_may(module):
    room = room_of(module)
    assert room in ROOMS, f"{module}: tests/test_house.py and docs/architecture.md do not know the room {room}"
    wrong = {other for other in imports(module) if room_of(other) not in allowed(room)}
    assert not wrong, f"{module}, in {room}, may not import {', '.join(sorted(wrong))}"


def test_nothing_imports_in_a_circle():
    tuple(TopologicalSorter({module: set(imports(module)) - {module} for module in MODULES}).static_order())


def test_only_doors_and_leaves_lie_flat():
    flat = {module for module in MODULES if "." not in module}
    assert flat <= {*LEAVES, *DOORS}
    for door in flat & set(DOORS):
        assert len(MODULES[door].read_text(encoding="utf-8").splitlines()) < LONGEST_DOOR, f"{door} is no door"


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            first = node.body[1] if documented and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < LONGEST_FUNCTION, f"{module}.{node.name} is too long"
