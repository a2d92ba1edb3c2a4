"""Which way data flows (docs/architecture.md): every import of every product package, wherever it stands."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("contracts", "features", "streamer", "learner", "serving", "cli")

# What a room may import besides itself; a dotted name allows that module and what is below it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "contracts": (),
    "features": ("contracts",),
    "streamer": ("contracts", "features"),
    "learner": ("contracts", "features"),
    "serving": ("contracts", "features", "learner.models", "learner.snapshot"),
    "cli": ("contracts", "features", "streamer", "learner", "serving"),
}
# The types that cross a boundary must cost nothing to import.
THIRD_PARTY_IN_CONTRACTS = {"msgspec", "pydantic", "pydantic_settings", "numpy"}

Import = tuple[str, int]


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root: Path) -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    return {module_name(file, root): file for room in ROOMS for file in sorted((root / room).rglob("*.py"))}


def imports(name: str, file: Path, known: set[str]) -> Iterator[Import]:
    """The modules a file imports and the line: at the top, inside functions, under TYPE_CHECKING, by literal name.

    ``from a import b`` is an import of ``a.b`` where that is a module of the product, else of ``a``.
    """
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in known else base), node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in {"importlib.import_module", "import_module", "__import__"}:
                yield str(node.args[0].value), node.lineno


def within(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(f"{allowed}.")


def forbidden(root: Path) -> list[str]:
    """Imports against the table, one line each: where, what, and what would be allowed."""
    found = []
    modules = sources(root)
    for name, file in modules.items():
        room = name.split(".", 1)[0]
        for imported, line in imports(name, file, set(modules)):
            top = imported.split(".", 1)[0]
            where = f"{file.relative_to(root)}:{line} imports {imported}"
            if top in ROOMS:
                if top != room and not any(within(imported, allowed) for allowed in MAY_IMPORT[room]):
                    found.append(f"{where}; {room} may import {', '.join(MAY_IMPORT[room]) or 'no other room'}")
            elif top in {"tests", "benchmarks", "examples"}:
                found.append(f"{where}; a product package imports no {top}")
            elif room == "contracts" and top not in sys.stdlib_module_names | THIRD_PARTY_IN_CONTRACTS:
                found.append(f"{where}; contracts may import {', '.join(sorted(THIRD_PARTY_IN_CONTRACTS))}")
    return found


def cycle(root: Path) -> list[str]:
    """Modules that import each other in a ring, the first one again at the end; empty where there is none."""
    modules = sources(root)
    graph = {
        # Only imports that are written: that `import a.b` first runs a/__init__.py is Python's own order.
        name: {target for target, _ in imports(name, file, set(modules)) if target in modules and target != name}
        for name, file in modules.items()
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        ring: list[str] = error.args[1]
        return ring
    return []


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def test_no_room_imports_what_its_place_in_the_flow_forbids() -> None:
    assert forbidden(ROOT) == []


def test_no_modules_import_each_other_in_a_ring() -> None:
    assert cycle(ROOT) == []


def test_every_room_is_walked() -> None:
    assert {name.split(".", 1)[0] for name in sources(ROOT)} == set(ROOMS)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("contracts/a.py", "import torch"),
        ("contracts/a.py", "from features.encoder import Encoder"),
        ("features/a.py", "import learner"),
        ("streamer/a.py", "def f():\n    from learner import trainer"),
        ("streamer/a.py", "import typing\nif typing.TYPE_CHECKING:\n    from learner.trainer import Trainer"),
        ("streamer/sources/a.py", "import importlib\nimportlib.import_module('serving.app')"),
        ("learner/a.py", "from streamer import join"),
        ("learner/models/a.py", "import serving.scorer as s"),
        ("serving/a.py", "from learner.trainer import Trainer"),
        ("serving/a.py", "from learner import trainer"),
        ("serving/a.py", "from learner import *"),
        ("serving/a.py", "import learner.models_of_another_kind"),
        ("serving/a.py", "import cli.main"),
        ("cli/a.py", "from tests import conftest"),
        ("learner/a.py", "from ..streamer import join"),
    ],
)
def test_a_forbidden_import_is_found_wherever_it_stands(tmp_path: Path, path: str, text: str) -> None:
    root = write(tmp_path, {path: text, "learner/trainer.py": ""})
    assert [line.split(":", 1)[0] for line in forbidden(root)] == [path]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("contracts/a.py", "import json, numpy\nfrom pydantic import BaseModel\nfrom contracts.b import B"),
        ("streamer/a.py", "import kafka\nfrom features import encoder"),
        ("serving/a.py", "from learner.models import mmoe\nfrom learner import snapshot\nimport learner.models"),
        ("cli/a.py", "import streamer, learner, serving"),
    ],
)
def test_an_import_down_the_flow_is_allowed(tmp_path: Path, path: str, text: str) -> None:
    root = write(tmp_path, {path: text, "learner/snapshot.py": "", "learner/models/mmoe.py": ""})
    assert forbidden(root) == []


def test_a_ring_of_imports_is_found_also_through_a_function(tmp_path: Path) -> None:
    write(tmp_path, {"learner/a.py": "import learner.b", "learner/b.py": "def f():\n    from learner import a"})
    assert set(cycle(tmp_path)) == {"learner.a", "learner.b"}
