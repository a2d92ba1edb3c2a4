"""docs/metrics.md and the code tell the same metrics, with the same types and labels."""

import importlib.util
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from learner.metrics import LearnerMetrics
from serving.metrics import ServingMetrics
from streamer.metrics import StreamMetrics

# A test folder is no package, so the reader of the table is loaded by its path.
_SPEC = importlib.util.spec_from_file_location("docs_tables", Path(__file__).parents[1] / "test_docs.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_DOCS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_DOCS)


def exported(room: str) -> dict[str, tuple[str, set[str]]]:
    """Type and labels by name, in the table's form."""
    registry = CollectorRegistry()
    made = {
        "streamer": lambda: StreamMetrics(registry),
        "learner": lambda: LearnerMetrics(registry, "adwin"),
        "serving": lambda: ServingMetrics(registry),
    }[room]()
    found = {}
    for metric in vars(made).values():
        if isinstance(metric, MetricWrapperBase):
            [described] = metric.describe()
            suffix = "_total" if described.type == "counter" else ""
            found[described.name + suffix] = (described.type, set(metric._labelnames))
    return found


@pytest.mark.parametrize("room", ["streamer", "learner", "serving"])
def test_what_a_room_exports_is_documented_with_its_type_and_labels(room: str) -> None:
    table = _DOCS.documented()
    assert exported(room)
    assert {name: table.get(name) for name in exported(room)} == exported(room)


def test_what_is_documented_is_exported() -> None:
    everything = set().union(*(exported(room) for room in ("streamer", "learner", "serving")))
    assert set(_DOCS.documented()) == everything
