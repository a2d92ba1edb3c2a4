"""The settings that a snapshot was made under beside those of now: what differs, by name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from contracts.manifest import Manifest
from contracts.settings import Settings

_NAMED = {"tasks": "name", "fields": "source"}


class Difference(NamedTuple):
    """A setting, with its value in the snapshot and now; None: there is no task or field of this name."""

    path: str
    snapshot: Any
    now: Any

    @property
    def is_added(self) -> bool:
        """A task or a field that the snapshot has not."""
        return self.snapshot is None

    def __str__(self) -> str:
        if self.is_added:
            return f"{self.path} is new"
        if self.now is None:
            return f"{self.path} is gone"
        return f"{self.path}: snapshot {self.snapshot}, settings {self.now}"


def differences_from(manifest: Manifest, settings: Settings) -> list[Difference]:
    """Where these settings are not those of a snapshot; empty: its arrays mean what they mean here."""
    if not manifest.settings:
        found, expected = manifest.settings_fingerprint, settings.fingerprint()
        return [] if found == expected else [Difference("fingerprint", found, expected)]
    try:
        return differences(settings_of(manifest.settings), settings)
    except ValueError as error:
        return [Difference(str(error), f"version {manifest.library}", "none")]


def settings_of(shaping: Mapping[str, Any]) -> Settings:
    """Settings of a :meth:`contracts.settings.Settings.shaping`; what it does not name is at its default.

    :raises ValueError: this version does not know one of them, or forbids its value.
    """
    try:
        return Settings.model_validate(shaping)
    except ValidationError as error:
        paths = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise ValueError(f"settings that only another version knows ({paths})") from error


def differences(old: Settings, new: Settings) -> list[Difference]:
    """What shapes a snapshot and is not the same. Tasks and fields go by name; so does their order."""
    found = []
    before, now = old.shaping(), new.shaping()
    for section, value in now.items():
        known = before[section]
        if name := _NAMED.get(section):
            entries, known_entries = ({one[name]: one for one in several} for several in (value, known))
            both = [one for one in known_entries if one in entries]
            found += [
                Difference(f"{section}.{one}", known_entries.get(one), entries.get(one))
                for one in {**known_entries, **entries}
                if one not in both
            ]
            for one in both:
                found += _of_section(f"{section}.{one}", known_entries[one], entries[one])
            if both != (order := [one for one in entries if one in both]):
                found.append(Difference(f"the order of {section}", ", ".join(both), ", ".join(order)))
        elif isinstance(value, dict):
            found += _of_section(section, known, value)
        elif known != value:
            found.append(Difference(section, known, value))
    return found


def _of_section(path: str, known: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    return [Difference(f"{path}.{key}", known[key], value) for key, value in now.items() if known[key] != value]
