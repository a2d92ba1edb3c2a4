"""Every benchmark, one table.

python -m benchmarks [--only step,rivals]
"""

import argparse
import importlib
from pathlib import Path
from types import ModuleType

from benchmarks.figures import Figure, say, show

_PREFIX = "bench_"


def names() -> list[str]:
    """The benchmarks, as ``--only`` takes them: every module `bench_NAME.py` beside this one."""
    return sorted(path.stem.removeprefix(_PREFIX) for path in Path(__file__).parent.glob(f"{_PREFIX}*.py"))


def load(name: str) -> ModuleType:
    """A benchmark's module: it has ``TITLE`` and ``figures()``."""
    return importlib.import_module(f"benchmarks.{_PREFIX}{name}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Every benchmark, one table.")
    parser.add_argument("--only", default=",".join(names()), help="names with commas between; all: %(default)s")
    chosen = parser.parse_args().only.split(",")
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}")
    parts: dict[str, list[Figure]] = {}
    for place, name in enumerate(chosen, 1):
        say(f"{place} of {len(chosen)}: {name}")
        module = load(name)
        parts[module.TITLE] = module.figures()
    show(parts)


if __name__ == "__main__":
    main()
