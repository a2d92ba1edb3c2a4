"""A task's parent: what a funnel may look like."""

import re

import pytest
from pydantic import ValidationError

from contracts.settings import Settings

STAGES = [{"name": "content_view"}, {"name": "click"}, {"name": "cart"}, {"name": "purchase"}]


def funnel(*parents, **settings):
    tasks = [stage | ({"parent": parent} if parent else {}) for stage, parent in zip(STAGES, parents, strict=True)]
    return Settings.model_validate({"tasks": tasks, **settings})


def test_tasks_have_no_parent_unless_they_name_one() -> None:
    assert Settings().parents == (-1, -1, -1)


def test_a_parent_is_found_by_its_name_in_any_order() -> None:
    assert funnel("", "", "click", "cart").parents == (-1, -1, 1, 2)
    assert funnel("", "cart", "", "click").parents == (-1, 2, -1, 1)


def test_the_exposures_own_task_is_passed_by_every_example() -> None:
    assert funnel("", "content_view", "click", "cart").parents == (-1, -1, 1, 2)


def test_a_view_is_a_stage_like_others_where_impressions_open_examples() -> None:
    found = funnel("", "content_view", "click", "cart", events={"exposure": "impression"})
    assert found.parents == (-1, 0, 1, 2)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        (("", "", "", "clik"), "found clik as the parent of purchase, expected one of content_view, click, cart"),
        (("", "", "", "purchase"), "found purchase after purchase"),
        (("", "purchase", "click", "cart"), "found click after purchase after cart after click"),
        (("click", "", "", ""), "the exposure's own task has no parent; found click as the parent of content_view"),
    ],
)
def test_a_funnel_that_does_not_end_is_refused(parents, message) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        funnel(*parents)


def test_a_parent_in_implicit_mode_is_refused() -> None:
    with pytest.raises(ValidationError, match="in exposure mode only; found click as the parent of cart"):
        funnel("", "", "click", "", mode="implicit")
