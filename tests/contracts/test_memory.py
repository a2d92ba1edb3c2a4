"""One cap for all that grows: how it is divided, and what is said where the parts do not fit."""

from itertools import pairwise

import pytest

from contracts.memory import MIB, PARTS, n_dense, plan
from contracts.settings import Settings, SettingsError, load_settings
from contracts.shaping import settings_of
from features.schema import FeatureSchema

FIELDS = [
    {"source": "item.category"},
    {"source": "item.brand"},
    {"source": "item.price", "kind": "numeric"},
    {"source": "item.tags", "kind": "multi", "slots": 3},
    {"source": "user.country"},
    {"source": "user.age", "kind": "numeric"},
    {"source": "context.title", "kind": "text"},
    {"source": "context.position", "kind": "numeric"},
]


def capped(max_mib, **sections):
    return Settings.model_validate({"memory": {"max_mib": max_mib}, **sections})


def total_mib(settings):
    return sum(part.n_bytes for part in plan(settings)) / MIB


@pytest.mark.parametrize("max_mib", [16, 64, 100.5, 256, 4096])
@pytest.mark.parametrize("sections", [{}, {"fields": FIELDS}, {"mode": "implicit", "fields": FIELDS}])
def test_the_parts_that_nobody_chose_take_nearly_all_of_the_cap_and_no_more(max_mib, sections) -> None:
    settings = capped(max_mib, **sections)
    assert 0.95 * max_mib < total_mib(settings) <= max_mib


def test_a_part_that_is_set_stays_and_the_others_take_what_it_leaves() -> None:
    alone, beside = capped(256), capped(256, features={"users": 300_000})
    assert beside.features.users == 300_000
    assert beside.features.items < alone.features.items
    assert beside.embedding.max_mib < alone.embedding.max_mib
    assert beside.features.history_length == 8
    assert total_mib(beside) <= 256


def test_what_the_embedding_table_cannot_do_without_is_kept_for_it_under_a_small_cap() -> None:
    events = {"max_open": 1000, "deduplicate_max": 1000}
    chosen = total_mib(Settings.model_validate({"events": events})) - sum(
        one.n_bytes / MIB for one in plan(Settings()) if not one.part.setting.startswith("events")
    )
    settings = capped(chosen + 6, events=events)  # of which the table takes over four, however small
    assert settings.embedding.max_mib < 2
    assert chosen + 5 < total_mib(settings) <= chosen + 6


def test_a_larger_cap_makes_no_part_smaller() -> None:
    sizes = [[one.value for one in plan(capped(max_mib))] for max_mib in (16, 32, 64, 128, 512, 2048)]
    for smaller, larger in pairwise(sizes):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))


def test_parts_that_do_not_fit_are_named_with_their_values_and_the_way_out(tmp_path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("[memory]\nmax_mib = 300\n[embedding]\nmax_mib = 256\n[events]\nmax_open = 1_000_000\n")
    with pytest.raises(SettingsError) as found:
        load_settings(config)
    said = str(found.value)
    assert said.startswith(f"{config}: settings: memory.max_mib = 300 must hold all parts together; found ")
    assert "embedding.max_mib = 256 (262.0 MiB, set)" in said
    assert "events.max_open = 1000000 (" in said
    assert said.endswith("Raise it, or lower what is set")


def test_without_a_cap_every_part_has_its_own_and_a_snapshot_its_name() -> None:
    assert Settings().fingerprint() == "44136fa355b3678a"  # of every version so far
    assert (Settings().features.users, Settings().embedding.max_mib) == (200_000, 256)


def test_settings_come_back_from_a_snapshot_made_under_a_cap() -> None:
    made = capped(128, fields=FIELDS)
    assert settings_of(made.shaping()).fingerprint() == made.fingerprint() != Settings().fingerprint()
    assert capped(128, fields=FIELDS).fingerprint() == made.fingerprint()


def test_a_cap_by_the_environment_counts_as_one_in_the_file(monkeypatch) -> None:
    monkeypatch.setenv("ANABRANCH__MEMORY__MAX_MIB", "64")
    assert load_settings() == capped(64)


@pytest.mark.parametrize("features", [{}, {"interests": 1}, {"trail": 0, "half_lives": ["1m"]}])
@pytest.mark.parametrize("fields", [[], FIELDS])
def test_an_example_has_as_many_dense_columns_as_the_plan_counts(fields, features) -> None:
    settings = Settings.model_validate({"fields": fields, "features": features})
    assert n_dense(settings) == len(FeatureSchema.of(settings).layout.dense)


def test_every_part_is_a_setting() -> None:
    assert abs(sum(part.share for part in PARTS) - 1) < 1e-9
    for part in PARTS:
        assert part.value(Settings()) >= part.least
