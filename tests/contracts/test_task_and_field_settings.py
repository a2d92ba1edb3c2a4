"""What a task's delay, its weight and a field's kind ask of their other settings."""

import pytest

from contracts.settings import FieldSpec, Settings


@pytest.mark.parametrize(("delay", "wait"), [("delay_head", "0s"), ("delay_head", "30m"), ("es_dfm", "2h")])
def test_a_task_that_hands_on_early_waits_shorter_than_its_window(delay: str, wait: str) -> None:
    task = {"name": "click", "window": "30m", "delay": delay, "wait": wait}
    with pytest.raises(ValueError, match=r"longer than 0 ms and shorter than its window; found \d+ ms of 1800000 ms"):
        Settings.model_validate({"tasks": [task]})
    Settings.model_validate({"tasks": [{**task, "delay": "wait"}]})


def test_only_an_outcome_has_a_delay_head() -> None:
    tasks = [{"name": name, "delay": "delay_head"} for name in ("content_view", "click")]
    assert Settings.model_validate({"tasks": tasks}).delay_head_tasks == (False, True)
    assert Settings.model_validate({"tasks": tasks, "mode": "implicit"}).delay_head_tasks == (False, False)


@pytest.mark.parametrize("more", [{"positive_weight": 2.0}, {"focal_gamma": 1.0}])
def test_es_dfm_takes_no_other_weights(more: dict[str, float]) -> None:
    task = {"name": "click", "delay": "es_dfm", **more}
    with pytest.raises(ValueError, match="es_dfm weighs examples by itself"):
        Settings.model_validate({"tasks": [task]})


VIEW, CLICK = {"name": "content_view"}, {"name": "click"}
SHOWN = {"name": "shown", "event": "impression"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tasks": [VIEW, CLICK]}, (0.33, 1.0)),
        ({"tasks": [{**VIEW, "weight": 1.0}, {**CLICK, "weight": 0.0}]}, (1.0, 0.0)),
        ({"tasks": [VIEW]}, (1.0,)),
        ({"tasks": [VIEW, CLICK], "mode": "implicit"}, (1.0, 1.0)),
        ({"tasks": [VIEW, SHOWN], "events": {"exposure": "impression"}}, (1.0, 0.33)),
    ],
)
def test_the_exposures_own_task_weighs_a_third_beside_outcomes_unless_told_otherwise(
    settings: dict[str, object], expected: tuple[float, ...]
) -> None:
    assert Settings.model_validate(settings).task_weights == expected


def test_a_field_takes_as_many_ids_as_it_has_slots() -> None:
    kinds = ("categorical", "multi", "text")
    assert [FieldSpec(source="item.x", kind=kind).n_ids for kind in kinds] == [1, 4, 8]
    assert FieldSpec(source="item.x", kind="multi", slots=2).n_ids == 2
    with pytest.raises(ValueError, match=r"slots go with kind multi or text; found kind categorical for item\.x"):
        FieldSpec(source="item.x", slots=2)


def test_a_third_process_is_refused_with_what_it_would_share_and_the_way_out() -> None:
    for processes in (0, 1, 2):
        assert Settings(processes=processes).processes == processes
    with pytest.raises(ValueError, match=r"one ingest.*found 3\. .*all users together.*ADR 22.*Leave it at 0"):
        Settings(processes=3)
