"""Components are found by module name: `learner/models/mmoe.py` is `model.name = "mmoe"`."""

import importlib
import pkgutil
from types import ModuleType


def names(package: str) -> list[str]:
    """The components of a package: its public modules, sorted."""
    found = importlib.import_module(package)
    return sorted(module.name for module in pkgutil.iter_modules(found.__path__) if not module.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """The module that a name in the settings stands for.

    :raises ValueError: no such component; the message lists those there are.
    """
    known = names(package)
    if name not in known:
        raise ValueError(f"Unknown component in `{package}`: found `{name}`, expected one of {', '.join(known)}.")
    return importlib.import_module(f"{package}.{name}")
