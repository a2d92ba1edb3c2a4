"""Compiled code on disk is that of the sources as they are now."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import features.compiled

CALLER = """
from features.compiled import compiled_loop
from features.called import called

@compiled_loop
def caller(x: int) -> int:
    return called(x)

print(caller(1))
"""
CALLED = """
from features.compiled import compiled

@compiled
def called(x: int) -> int:
    return x + {added}
"""


def _run(folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    command = [sys.executable, "-c", "import features.caller"]
    environment["PYTHONPATH"] = str(folder)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_change_of_what_a_compiled_function_calls_in_another_file_is_not_missed(tmp_path: Path) -> None:
    """numba alone would answer with the old code: it looks at the file of the calling function only."""
    package = tmp_path / "features"
    package.mkdir()
    shutil.copy(str(features.compiled.__file__), package)
    (package / "__init__.py").touch()
    (package / "caller.py").write_text(CALLER)
    (package / "called.py").write_text(CALLED.format(added=1))
    assert _run(tmp_path) == "2\n"
    kept = {path: path.stat().st_mtime_ns for path in package.glob("__pycache__/*.nb*")}
    assert len(kept) >= 2
    assert _run(tmp_path) == "2\n"
    assert {path: path.stat().st_mtime_ns for path in package.glob("__pycache__/*.nb*")} == kept, "compiled again"
    (package / "called.py").write_text(CALLED.format(added=10))
    assert _run(tmp_path) == "11\n"
