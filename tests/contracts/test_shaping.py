"""The settings that a snapshot was made under: written down, named by a hash, compared with those of now."""

import pytest
from msgspec.structs import replace

from contracts.manifest import Manifest, decode_manifest, encode_manifest
from contracts.settings import Settings
from contracts.shaping import differences, differences_from, settings_of

RICH = Settings.model_validate(
    {
        "tasks": [{"name": "content_view"}, {"name": "buy", "event": "purchase", "window": "36h", "parent": ""}],
        "fields": [{"source": "item.brand"}, {"source": "item.tags", "kind": "multi", "slots": 3}],
        "events": {"lateness": "1.5s", "ignore": ["search"]},
        "features": {"half_lives": ["1m", "2h"]},
        "model": {"expert_layers": [8, 4]},
    }
)


def manifest_of(made_under, **changes):
    made = Manifest(
        library="0.1.0",
        version=1,
        created_ms=0,
        event_time_ms=0,
        n_events=0,
        offsets={},
        settings_fingerprint=made_under.fingerprint(),
        tasks=[],
        layout={},
        settings=made_under.shaping(),
        files={},
    )
    return decode_manifest(encode_manifest(replace(made, **changes)))


@pytest.mark.parametrize("settings", [Settings(), RICH])
def test_settings_come_back_from_what_a_manifest_says_of_them(settings) -> None:
    manifest = manifest_of(settings)
    assert settings_of(manifest.settings).shaping() == settings.shaping()
    assert differences_from(manifest, settings) == []


def test_a_setting_that_a_later_version_adds_changes_neither_name_nor_meaning_at_its_default() -> None:
    older = manifest_of(RICH)
    for section, name in (("features", "trail"), ("negatives", "uniform_share"), ("embedding", "admit_after")):
        assert older.settings[section].pop(name) is not None
    for task in older.settings["tasks"]:
        del task["focal_gamma"]
    assert differences_from(older, RICH) == []
    assert settings_of(older.settings).fingerprint() == RICH.fingerprint()
    shorter = RICH.model_copy(update={"features": RICH.features.model_copy(update={"trail": 4})})
    assert [one.path for one in differences_from(older, shorter)] == ["features.trail"]
    assert shorter.fingerprint() != RICH.fingerprint()


def test_only_what_is_not_at_its_default_counts_for_the_name() -> None:
    spelt_out = Settings.model_validate({**Settings().shaping(), "model": {"name": "mmoe", "width": 16}})
    assert spelt_out.fingerprint() == Settings().fingerprint()
    assert Settings().shaping(only_changed=True) == {}


def test_which_records_are_read_at_all_shapes_nothing() -> None:
    wider = {"ignore": ["*"], "max_bytes": 9_999, "max_future": "1h"}
    assert differences(Settings(), Settings.model_validate({"events": wider})) == []


def test_differences_go_by_name_whatever_their_place() -> None:
    now = Settings.model_validate(
        {
            **RICH.shaping(),
            "tasks": [{"name": "favourite"}, {"name": "buy", "event": "purchase", "window": "1h"}],
            "fields": [RICH.shaping()["fields"][1], {"source": "item.brand"}, {"source": "user.country"}],
            "model": {"expert_layers": [8, 5]},
        }
    )
    found = {str(one): one.is_added for one in differences(RICH, now)}
    assert found == {
        "tasks.content_view is gone": False,
        "tasks.favourite is new": True,
        "tasks.buy.window: snapshot 129600000ms, settings 3600000ms": False,
        "fields.user.country is new": True,
        "the order of fields: snapshot item.brand, item.tags, settings item.tags, item.brand": False,
        "model.expert_layers: snapshot [8, 4], settings [8, 5]": False,
    }


def test_a_setting_of_another_version_is_named() -> None:
    strange = manifest_of(RICH)
    strange.settings["features"]["flavour"] = "sweet"
    (found,) = differences_from(strange, RICH)
    assert "features.flavour" in str(found)
    assert not found.is_added


def test_a_snapshot_that_does_not_tell_its_settings_is_known_by_their_fingerprint() -> None:
    silent = manifest_of(RICH, settings={})
    assert differences_from(silent, RICH) == []
    (found,) = differences_from(silent, Settings())
    assert str(found) == f"fingerprint: snapshot {RICH.fingerprint()}, settings {Settings().fingerprint()}"
