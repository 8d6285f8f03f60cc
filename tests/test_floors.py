"""Who may import whom: lower floors, or one's own folder."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skanomaly

ROOT = Path(skanomaly.__file__).parent
FLOORS = [
    {"_atomic", "_docstrings", "_rows", "_size", "_version", "datasets", "metrics", "segmentation"},
    {
        "_images",
        "_random",
        "_inference",
        "_losses",
        "_search",
        "_storage",
        "networks",
    },
    {"synthesis", "training", "transforms"},
    {"_detector"},
    {"detectors"},
    {
        "_discovery",
        "_holder",
        "_unwrap",
        "layers",
        "model_selection",
        "patches",
        "persistence",
        "plotting",
        "segmenters",
        "staging",
        "testing",
    },
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def imported(path):
    """Dotted names below skanomaly that a file imports, and the other packages."""
    package = path.relative_to(ROOT.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from (base + (alias.name,) for alias in node.names)


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_or_stay_level(path):
    for _, room, *_ in (name for name in imported(path) if name[0] == "skanomaly"):
        assert FLOOR[room] <= FLOOR[room_of(path)], f"{room} is above {room_of(path)}"
        assert (room, room_of(path)) != ("detectors", "detectors"), "detectors do not import one another"


def test_no_circles():
    rooms = {room: set() for room in FLOOR}
    for path in FILES:
        rooms[room_of(path)] |= {name[1] for name in imported(path) if name[0] == "skanomaly"}
    TopologicalSorter({room: needed - {room} for room, needed in rooms.items()}).prepare()


@pytest.mark.parametrize("room", sorted(FLOORS[0]))
def test_the_ground_floor_knows_no_torch(room):
    files = [path for path in FILES if room_of(path) == room]
    assert files
    assert not [name for path in files for name in imported(path) if name[0] in ("torch", "skorch")]
