"""Who may import whom: lower floors, or one's own folder."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skanomaly

ROOT = Path(skanomaly.__file__).parent
FLOORS = [
    {
        "_arrays",
        "_atomic",
        "_finite",
        "_parameters",
        "_version",
        "datasets",
        "density",
        "io",
        "labels",
        "retina.comparison",
        "segmentation",
    },
    {
        "_containers",
        "_images",
        "_random",
        "_rows",
        "_inference",
        "_losses",
        "_search",
        "_storage",
        "networks",
    },
    {"_format"},
    {"_backbone", "_confounds", "_windows", "metrics", "synthesis", "training", "transforms"},
    {"base"},
    {"detectors"},
    {
        "_comparison",
        "_discovery",
        "_holder",
        "_unwrap",
        "__main__",
        "_cli",
        "encoders",
        "ensemble",
        "features",
        "layers",
        "merging",
        "model_selection",
        "patches",
        "persistence",
        "plotting",
        "preprocessing",
        "_report",
        "retina",
        "segmenters",
        "staging",
        "testing",
        "volumes",
    },
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
TREES = {path: ast.parse(path.read_text()) for path in FILES}
#: Base classes may use private names of the detectors.
EXEMPT = {"base"}
#: Names with an underscore that are public: of a NamedTuple, and of any estimator.
PUBLIC = {"_asdict", "_parameter_constraints", "_replace"}


def imported(path):
    """Dotted names below skanomaly that a file imports, and the other packages."""
    package = path.relative_to(ROOT.parent).parent.parts
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from (base + (alias.name,) for alias in node.names)


def room_of(*parts):
    """First part of a dotted name below skanomaly, or two: a file may stand lower than its folder."""
    file = ".".join(parts[:2])
    return file if file in FLOOR else parts[0]


ROOMS = {path: room_of(*path.relative_to(ROOT).with_suffix("").parts) for path in FILES}


def rooms_below(path):
    return {room_of(*name[1:]) for name in imported(path) if name[0] == "skanomaly"} - {ROOMS[path]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_or_stay_level(path):
    for room in rooms_below(path):
        assert FLOOR[room] <= FLOOR[ROOMS[path]], f"{room} is above {ROOMS[path]}"
    if ROOMS[path] == "detectors":
        others = [name for name in imported(path) if name[:2] == ("skanomaly", "detectors")]
        assert not others, "detectors do not import one another"


def test_no_circles():
    needed = {room: set() for room in FLOOR}
    for path in FILES:
        needed[ROOMS[path]] |= rooms_below(path)
    TopologicalSorter(needed).prepare()


@pytest.mark.parametrize("room", sorted(FLOORS[0]))
def test_the_ground_floor_knows_no_torch(room):
    files = [path for path in FILES if ROOMS[path] == room]
    assert files
    assert not [name for path in files for name in imported(path) if name[0] in ("torch", "skorch")]
    if "." in room:
        folder = ROOT / room.split(".")[0] / "__init__.py"
        assert not list(imported(folder)), "it is imported with the file"


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def is_own(node):
    """Whether a node is self, cls or super()."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined(tree):
    """Names of functions, classes, constants and attributes that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, (ast.Module, ast.ClassDef)):
            assigned = [part for part in node.body if isinstance(part, (ast.Assign, ast.AnnAssign))]
            names = (name for part in assigned for name in ast.walk(part) if isinstance(name, ast.Name))
            yield from (name.id for name in names if isinstance(name.ctx, ast.Store))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


def foreign_private_names(path):
    """Private names that a file uses of other rooms: attributes of objects, and imports."""
    ours = {name for other in FILES if ROOMS[other] == ROOMS[path] for name in defined(TREES[other])}
    if ROOMS[path] not in EXEMPT:  # what a detector keeps to itself, whoever overrides it
        ours -= {name for other in FILES if ROOMS[other] in EXEMPT for name in defined(TREES[other])}
    imports = (node for node in ast.walk(TREES[path]) if isinstance(node, ast.Import))
    packages = {alias.asname or alias.name for node in imports for alias in node.names}  # of others
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            other = isinstance(node.value, ast.Name) and node.value.id in packages
            if node.attr not in ours and not other:
                yield node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            (of, name), found = node.args[:2], getattr(node.args[1], "value", None)
            if isinstance(found, str) and is_private(found) and not is_own(of):
                yield found
    for name in imported(path):
        if name[0] == "skanomaly" and is_private(name[-1]) and room_of(*name[1:]) != ROOMS[path]:
            file = ROOT.joinpath(*name[1:])
            if not file.is_dir() and not file.with_suffix(".py").exists():
                yield name[-1]


def test_private_names_stay_in_their_room():
    used = {(ROOMS[path], name) for path in FILES for name in foreign_private_names(path)}
    assert not {one for one in used if one[0] not in EXEMPT}
