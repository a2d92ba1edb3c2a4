"""What `evaluate --compare` names: settings that differ from the base's in what the learner alone reads."""

import re
import tomllib
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from contracts.components import names
from contracts.settings import Settings, SettingsError

_Section = TypeVar("_Section", bound=BaseModel)

_SHORT = {"model": "model.name", "balancing": "train.balancing", "delay": "tasks.delay"}
_LEARNER = ("model", "train", "embedding")
_LEARNER_OF_TASK = ("weight", "positive_weight", "focal_gamma", "delay", "parent")
_OF_ITS_STREAM = {
    "fnc_in_loss": ("fnc_in_loss", "wait"),
    "delay_head": ("delay_head", "es_dfm"),
    "es_dfm": ("delay_head", "es_dfm"),
    "wait": ("wait",),
}
"""The delays that can be learned from a stream which was read for a delay."""
_ALLOWED = (
    f"a model ({', '.join(names('learner.models'))}), a balancing, or KEY=VALUE with a key of "
    f"{', '.join(f'`{section}.…`' for section in _LEARNER)} or `tasks[.TASK].{{{','.join(_LEARNER_OF_TASK)}}}`"
)


def variants(settings: Settings, options: Sequence[str]) -> dict[str, Settings]:
    """Settings by variant, as named: ``ple``, ``balancing=uncertainty``, ``ple+embedding.learning_rate=0.05``.

    :param options: each a list with commas; a comma within ``[…]`` belongs to a value.
    :raises SettingsError: no such name or key, a value breaks a rule, or the stream itself would be another one.
    """
    listed = [name.strip() for option in options for name in re.split(r",(?![^\[]*\])", option) if name.strip()]
    return {name: _variant(settings, name) for name in listed}


def _variant(settings: Settings, name: str) -> Settings:
    made = settings
    for override in name.split("+"):
        key, value = _pair(override.strip())
        try:
            made = _overridden(made, key, value)
        except ValidationError as error:
            told = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
            raise SettingsError(f"--compare {name}: {key}: {told} (found {value!r})") from error
        except KeyError as error:
            raise SettingsError(
                f"--compare {name}: `{key}` cannot differ on one stream, or is no setting; expected {_ALLOWED}. "
                "Settings that make another stream are two runs of `evaluate`."
            ) from error
    for task, new in zip(settings.tasks, made.tasks, strict=True):
        is_outcome = settings.mode == "exposure" and task.event_type != settings.events.exposure
        if is_outcome and new.delay not in _OF_ITS_STREAM[task.delay]:
            raise SettingsError(
                f"--compare {name}: a stream by delay = {task.delay} does not tell when the labels of `{task.name}` "
                f"came as {new.delay} asks. One stream holds fnc_in_loss and wait: set delay = fnc_in_loss in the "
                "settings and compare with `delay=wait`; another one delay_head and es_dfm. Else run `evaluate` twice."
            )
    return made


def _pair(override: str) -> tuple[str, object]:
    key, is_pair, text = (part.strip() for part in override.partition("="))
    if not is_pair:
        for package, setting in (("learner.models", "model.name"), ("learner.balancing", "train.balancing")):
            if key in names(package):
                return setting, key
        raise SettingsError(
            f"--compare {override}: no such model or balancing; expected {_ALLOWED}. "
            f"Balancings: {', '.join(names('learner.balancing'))}."
        )
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return _SHORT.get(key, key), value


def _overridden(settings: Settings, key: str, value: object) -> Settings:
    """:raises KeyError: not a key that may differ."""
    section, *path = key.split(".")
    changes: dict[str, object] = {}
    if section in _LEARNER and len(path) == 1:
        changes[section] = _changed(getattr(settings, section), path[0], value)
    elif section == "tasks" and path and path[-1] in _LEARNER_OF_TASK and len(path) <= 2:
        chosen = {task.name for task in settings.tasks} if len(path) == 1 else {path[0]}
        if not chosen & {task.name for task in settings.tasks}:
            raise KeyError(key)
        changes["tasks"] = tuple(
            _changed(task, path[-1], value, name=task.name) if task.name in chosen else task for task in settings.tasks
        )
    else:
        raise KeyError(key)
    # Sections as they are; the rules that span them are looked at again.
    return Settings.model_validate({**{name: getattr(settings, name) for name in Settings.model_fields}, **changes})


def _changed(section: _Section, key: str, value: object, **required: Any) -> _Section:
    known = {field.alias or name for name, field in type(section).model_fields.items()}
    if key not in known:
        raise KeyError(key)
    given = type(section).model_validate({**required, key: value})
    return section.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})
