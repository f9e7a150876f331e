"""The package stays a house with few rooms: its modules and folders, and what they import."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import graphile_worker_py

ROOT = Path(graphile_worker_py.__file__).parent
PACKAGE = graphile_worker_py.__name__
MOST_MODULES_IN_THE_ROOT = 16
MOST_ROOMS = 43


def modules() -> dict[str, Path]:
    """The files of all modules, by full name."""
    return {
        ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in ROOT.rglob("*.py")
    }


def room_of(module: str) -> str:
    """The part of the package that a module belongs to: a folder, or a module of the root."""
    _, _, below = module.partition(".")
    return below.partition(".")[0]


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports, also for type checkers only."""
    known = modules()
    graph: dict[str, set[str]] = {room_of(module): set() for module in known if module != PACKAGE}
    for module, path in known.items():
        if module == PACKAGE:
            continue  # names every public module, and imports none before it is asked
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    graph[room_of(module)].add(room_of(full if full in known else str(node.module)))
    return {room: others - {room, ""} for room, others in graph.items()}


def test_the_root_has_few_modules() -> None:
    here = {path.name for path in ROOT.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(here) <= MOST_MODULES_IN_THE_ROOT, sorted(here)


def test_the_package_has_few_rooms() -> None:
    rooms = imports().keys()
    assert {"workers", "postgres", "runner", "errors"} <= rooms
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)


def test_no_rooms_import_each_other_in_a_circle() -> None:
    graph = imports()
    assert "postgres" in graph["sql"]
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("errors") < order.index("workers") < order.index("cli")
