"""Nothing that loads a file or a record can run code: no pickle, no eval, no loader that builds objects by name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("contracts", "features", "streamer", "learner", "serving", "cli")
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "yaml"}
NAMES = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "torch.load",
    "torch.jit.load",
    "torch.package",
    "np.load",
    "numpy.load",
    "np.fromfile",
    "pandas.read_pickle",
}

ALLOWED = {
    # Between a process and its own child, by multiprocessing's pipe and memory they share; nothing from a file.
    "streamer/child.py": {"pickle"},
    "streamer/wire.py": {"pickle"},
}


def loaders(file: Path) -> list[tuple[str, int]]:
    """What a file uses that could run code from data, and the line: also inside functions and under other names."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] in MODULES:
                found.append((module, node.lineno))
            found += [
                (f"{module}.{alias.name}", node.lineno)
                for alias in node.names
                if {f"{module}.{alias.name}", f"{module}.{alias.name}".replace("numpy.", "np.")} & METHODS
            ]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in NAMES | METHODS or called.endswith(".read_pickle"):
                found.append((called, node.lineno))
            found += [("allow_pickle", node.lineno) for keyword in node.keywords if keyword.arg == "allow_pickle"]
    return found


def test_no_package_loads_what_could_run_code() -> None:
    found = [
        f"{path}:{line} uses {name}"
        for room in ROOMS
        for file in sorted((ROOT / room).rglob("*.py"))
        for name, line in loaders(file)
        if name not in ALLOWED.get(path := file.relative_to(ROOT).as_posix(), ())
    ]
    assert found == []


def test_every_exception_is_still_needed() -> None:
    assert {path: {name for name, _ in loaders(ROOT / path)} for path in ALLOWED} == ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle as p",
        "def f():\n    from pickle import loads",
        "import yaml",
        "import marshal, os",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x')",
        "from numpy import load",
        "import pandas as pd\npd.read_pickle('x')",
        "import numpy\nnumpy.lib.format.read_array(f, allow_pickle=True)",
        "eval('1')",
        "exec('1')",
        "__import__('pickle')",
    ],
)
def test_a_loader_is_found_wherever_it_stands(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    assert loaders(file)


@pytest.mark.parametrize(
    "text", ["import json", "model.eval()", "import re\nre.compile('x')", "safetensors.numpy.load(b)"]
)
def test_what_only_looks_like_one_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    assert loaders(file) == []
