"""Apache Kafka, as the tests start it."""

import importlib.util
from pathlib import Path
from types import ModuleType


def apache_kafka() -> ModuleType:
    """The module `tests/kafka/apache.py`: a test folder is no package, so it is loaded by its path."""
    path = Path(__file__).parents[1] / "tests" / "kafka" / "apache.py"
    spec = importlib.util.spec_from_file_location("apache_kafka_for_benchmarks", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded; run from a whole checkout.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
