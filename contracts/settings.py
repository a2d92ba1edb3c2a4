"""The settings: one TOML file, environment overrides ``ANABRANCH__SECTION__KEY``, read once at the edge, frozen."""

import hashlib
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import EnvSettingsSource

from contracts import memory as memory_plan

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
_UNITS_MS = {"ms": 1, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}


class SettingsError(ValueError):
    """The settings cannot be used; the message has a line per error: path, rule, found value."""


def parse_duration_ms(value: object) -> object:
    """Milliseconds of a duration such as ``"30m"``, ``"1.5h"``, ``"7d"``.

    >>> parse_duration_ms("30m")
    1800000

    :raises ValueError: not a number followed by ms, s, m, h or d.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value)
        if match is None:
            raise ValueError(f'a duration is a number and a unit (ms, s, m, h, d), such as "30m"; found `{value}`')
        return round(float(match[1]) * _UNITS_MS[match[2]])
    raise ValueError(f'a duration is text with a unit, such as "30m"; found `{value!r}`')


DurationMs = Annotated[int, BeforeValidator(parse_duration_ms), PlainSerializer(lambda ms: f"{ms}ms", when_used="json")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Task(_Section):
    """One objective: will this event follow?"""

    name: Name
    event: str = ""
    """Event type that makes the label 1; the task's name where empty."""
    window_ms: DurationMs = Field(default=24 * HOUR, alias="window")
    """Attribution window on event time: a later event does not count."""
    delay: Literal["fnc_in_loss", "delay_head", "es_dfm", "wait"] = "fnc_in_loss"
    """How a label that comes late is learned. ``fnc_in_loss``: every exposure at once as a negative, its outcome as one
    positive more, and the loss knows (ALGORITHMS §1 A). ``delay_head``: every exposure after ``wait``, labelled as it
    stands then, an outcome behind that as one positive more, and a small head learns which outcomes come so late
    (ALGORITHMS §1 B, ADR 15). ``es_dfm``: the same stream, each example weighed by what two heads learned from closed
    windows (Yang et al. 2021, ADR 26). ``wait``: once, when the window closes."""
    wait_ms: DurationMs = Field(default=5 * MINUTE, alias="wait")
    """Of ``delay_head`` and ``es_dfm`` alone; shorter than the window."""
    parent: str = ""
    """The task that must come first: ``purchase`` after ``click`` is a funnel, whose probabilities are products along
    it. The exposure's own task is no stage: every example is an exposure."""
    weight: float | None = Field(default=None, ge=0)
    """Of its loss in the sum of all. Not set: 1; a third for the exposure's own task beside others, which tells shown
    items from sampled ones and has most of the labels (ADR 31)."""
    positive_weight: float = Field(default=1.0, gt=0)
    """Of a positive's loss, for a rare task; probabilities stay calibrated (learner/imbalance.py)."""
    focal_gamma: float = Field(default=0.0, ge=0)
    """Focal loss: examples that are predicted well count for less; probabilities stay calibrated."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which accuracy, precision, recall and F1 call it a yes."""

    @model_validator(mode="after")
    def _waits_within_its_window(self) -> Self:
        if self.hands_on_early and not 0 < self.wait_ms < self.window_ms:
            raise ValueError(
                f"a task with {self.delay} waits longer than 0 ms and shorter than its window; found {self.wait_ms} ms "
                f"of {self.window_ms} ms for {self.name}. Set wait, or another delay"
            )
        return self

    @model_validator(mode="after")
    def _has_one_weight_for_an_example(self) -> Self:
        if self.delay == "es_dfm" and (self.positive_weight, self.focal_gamma) != (1.0, 0.0):
            raise ValueError(
                f"es_dfm weighs examples by itself; found positive_weight {self.positive_weight:g} and focal_gamma "
                f"{self.focal_gamma:g} for {self.name}. Leave them out, or set another delay"
            )
        return self

    @property
    def hands_on_early(self) -> bool:
        """Whether an exposure is learned after a wait, before its window closes."""
        return self.delay in ("delay_head", "es_dfm")

    @property
    def event_type(self) -> str:
        """The event type that makes the label 1."""
        return self.event or self.name


class FieldSpec(_Section):
    """One attribute that the model sees. ``source`` is ``item.…``, ``user.…`` or ``context.…``."""

    source: str = Field(pattern=r"^(item|user|context)\.[^.]+$")
    kind: Literal["categorical", "numeric", "multi", "text"] = "categorical"
    """``multi``: several labels, a list or text with ``separator``. ``text``: its words. The model sees their mean."""
    slots: int = Field(default=0, ge=0, le=32)
    """Of ``multi`` and ``text``: the first so many distinct labels or words count; 0: 4 labels, 8 words."""
    separator: str = Field(default="|", min_length=1)
    """Of ``multi``, where its value is text."""

    @property
    def n_ids(self) -> int:
        """Ids that it takes in an example."""
        return self.slots or {"multi": 4, "text": 8}.get(self.kind, 1)

    @model_validator(mode="after")
    def _slots_for_several(self) -> Self:
        if self.slots and self.kind not in ("multi", "text"):
            raise ValueError(
                f"slots go with kind multi or text; found kind {self.kind} for {self.source}: leave them out"
            )
        return self

    @property
    def name(self) -> str:
        """The field's name in layouts and reports: the source itself."""
        return self.source

    @property
    def owner(self) -> str:
        """``item``, ``user`` or ``context``."""
        return self.source.split(".", 1)[0]

    @property
    def key(self) -> str:
        """The attribute's key in the owner's map."""
        return self.source.split(".", 1)[1]


class KafkaSettings(_Section):
    """Where events come from, and where bad records go. Secrets never appear when this is printed or dumped."""

    bootstrap_servers: str = "localhost:9092"
    topic: str = "events"
    group: str = "anabranch"
    dead_letter_topic: str = ""
    """Empty: the topic's name with ``.dead-letters`` behind."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where to begin when there is no snapshot yet."""
    missing_offsets: Literal["fail", "skip"] = "fail"
    """Where retention has deleted the offset to go on at: end with an error that says what is gone, or go on at the
    first record there is, and count what is skipped (``anabranch_offsets_skipped_total``)."""
    client: Literal["auto", "kafka-python", "confluent"] = "auto"
    """Which library reads the topic (ADR 10); auto: confluent where it is installed, else kafka-python."""
    max_poll_records: int = Field(default=4000, ge=1)
    session_timeout_ms: DurationMs = Field(default=45 * SECOND, alias="session_timeout")
    instance: str = Field(default="", max_length=200, pattern=r"^[a-zA-Z0-9._-]*$")
    """This learner's name in its group (``group.instance.id``, ADR 18): who comes back under it after SIGKILL goes on
    at once, also where dead members cannot be taken out of the group (ADR 24). The learner and its standby share one,
    no others; empty: none."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    """Best by the environment: ``ANABRANCH__KAFKA__SASL_PASSWORD``."""
    sasl_password_file: Path | None = None
    """A file that holds the password instead; a line end behind it does not count. Read at each connection."""
    ssl_cafile: Path | None = None
    """Certificates (PEM) of who may vouch for the broker; none: the system's."""
    ssl_certfile: Path | None = None
    """This client's own certificate (PEM), where the broker asks for one."""
    ssl_keyfile: Path | None = None
    ssl_key_password: SecretStr = SecretStr("")
    ssl_check_hostname: bool = True

    @model_validator(mode="after")
    def _security_is_whole(self) -> Self:
        protocol = self.security_protocol
        sasl = sorted(_given(self, "sasl_"))
        tls = sorted(_given(self, "ssl_"))
        if protocol.startswith("SASL_"):
            missing = [name for name in ("sasl_mechanism", "sasl_username") if name not in sasl]
            if missing:
                raise ValueError(f"security_protocol {protocol} needs {' and '.join(missing)}; set it too")
            n_passwords = len({"sasl_password", "sasl_password_file"} & set(sasl))
            if n_passwords != 1:
                raise ValueError(
                    f"security_protocol {protocol} needs sasl_password (by ANABRANCH__KAFKA__SASL_PASSWORD) or "
                    f"sasl_password_file; found {'both' if n_passwords else 'neither'}, give one"
                )
        elif sasl:
            raise ValueError(
                f"{', '.join(sasl)} need security_protocol SASL_SSL or SASL_PLAINTEXT; found {protocol}. Set it, or "
                "take them out"
            )
        if tls and not protocol.endswith("SSL"):
            raise ValueError(
                f"{', '.join(tls)} need security_protocol SSL or SASL_SSL; found {protocol}. Set it, or take them out"
            )
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            given, other = ("certfile", "keyfile") if self.ssl_certfile else ("keyfile", "certfile")
            raise ValueError(f"ssl_{given} {getattr(self, f'ssl_{given}')} needs ssl_{other} too; give both or neither")
        return self

    @property
    def dead_letters(self) -> str:
        """The dead-letter topic's name."""
        return self.dead_letter_topic or f"{self.topic}.dead-letters"


def _given(section: _Section, prefix: str) -> set[str]:
    """The settings of this prefix that are not at their default."""
    fields = type(section).model_fields
    return {name for name in fields if name.startswith(prefix) and getattr(section, name) != fields[name].default}


class EventSettings(_Section):
    """How the stream is read."""

    mapping: str = ""
    """Mapping file for a foreign log or topic; empty: canonical JSON (DESIGN §2)."""
    exposure: str = "content_view"
    """The event type that opens an example in exposure mode."""
    orphans: Literal["drop", "synthesize"] = "drop"
    """What becomes of an outcome without an exposure."""
    lateness_ms: DurationMs = Field(default=0, alias="lateness")
    """How far the watermark stays behind the newest event of its partition."""
    deduplicate_ms: DurationMs = Field(default=HOUR, alias="deduplicate")
    """An event id is remembered at least this long (event time)."""
    deduplicate_max: int = Field(default=5_000_000, ge=1)
    """At most this many ids a generation, two generations."""
    ignore: tuple[str, ...] = ()
    """Event types to pass over; "*" for every type that belongs to no task. Others are bad records."""
    max_future_ms: DurationMs = Field(default=10 * MINUTE, alias="max_future")
    """A record further ahead of the wall clock than this is a bad record."""
    max_bytes: int = Field(default=1_000_000, ge=100)
    max_open: int = Field(default=2_000_000, ge=1)
    """Exposures waiting for their labels; beyond, the oldest is given up, unlabelled, and counted."""


class FeatureSettings(_Section):
    """What is remembered of users and items, all bounded: of these the least recently used go first, of counters what
    counts least (ADR 34)."""

    history_length: int = Field(default=8, ge=1, le=64)
    users: int = Field(default=200_000, ge=16)
    items: int = Field(default=200_000, ge=16)
    pairs: int = Field(default=1 << 20, ge=1024)
    """Counters of user × item and user × content value; rounded up to a power of two."""
    values: int = Field(default=1 << 18, ge=1024)
    """Counters of items, users and content values; rounded up to a power of two."""
    half_lives_ms: tuple[DurationMs, ...] = Field(
        default=(10 * MINUTE, 6 * HOUR, 14 * DAY), alias="half_lives", min_length=1, max_length=6
    )
    """Every counter decays with each of these; together they tell trend, recency and habit."""
    trail: int = Field(default=16, ge=0, le=64)
    """Items that a user chose last, of any type, whose co-visitation with a candidate is a feature; 0: none."""
    value_trail: int = Field(default=4, ge=1, le=64)
    """The same of the values of the first item fields, at most ``trail`` (ADR 30)."""
    covisits: int = Field(default=1 << 20, ge=1024)
    """Counters of item × item and value × value; rounded up to a power of two."""
    covisit_half_life_ms: DurationMs = Field(default=60 * DAY, alias="covisit_half_life")
    interests: int = Field(default=2, ge=0, le=4)
    """The first so many categorical item fields get user × value counters and a popularity of their own."""
    recent_items: int = Field(default=1 << 15, ge=16)
    """Length of the recent traffic that negatives are drawn from."""


class NegativeSettings(_Section):
    """Sampled items that the user did not choose."""

    implicit: int = Field(default=8, ge=1, le=64)
    """Per positive, in implicit mode."""
    exposure: float = Field(default=0.25, ge=0, le=64)
    """Per exposure, in exposure mode, for a task whose event is the exposure itself; 0.25: for every fourth one, as the
    event's id decides (ADR 30)."""
    uniform_share: float = Field(default=1.0, gt=0, le=1)
    """Share drawn uniformly from the known items; the rest follows recent traffic."""
    keep: float = Field(default=1.0, gt=0, le=1)
    """Share of the exposures without an outcome that is learned, in exposure mode: all are scored and measured, and
    probabilities stay what they are (learner/thinning.py)."""


class BatchSettings(_Section):
    """A mini-batch closes at ``max_rows``, or after ``span`` of event time if it has ``min_rows``.

    Labels that matured meanwhile come with it and do not fill it; four times ``max_rows`` of them close it, too.
    """

    max_rows: int = Field(default=1024, ge=1)
    min_rows: int = Field(default=64, ge=1)
    span_ms: DurationMs = Field(default=SECOND, alias="span")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows ({self.min_rows}) must not exceed max_rows ({self.max_rows})")
        return self


class ModelSettings(_Section):
    """Which architecture, how wide."""

    name: str = "mmoe"
    width: int = Field(default=16, ge=1, le=512)
    """Width of an embedding row."""
    experts: int = Field(default=2, ge=1, le=64)
    expert_layers: tuple[int, ...] = Field(default=(80, 64), min_length=1, max_length=4)
    tower: int = Field(default=16, ge=1)
    history: Literal["mean", "attention"] = "mean"
    """What the model sees of a user's recent items: their mean, or the mean weighted by likeness to the candidate."""
    field_gates: bool = False
    """A learned factor for each embedding field, 1 at first: what a field is worth, the more so with
    ``train.gate_l1``."""


class EmbeddingSettings(_Section):
    """The id → row table: one for all fields, collisionless, under a hard cap."""

    max_mib: float = Field(default=256.0, gt=0)
    """Hard cap on rows, their optimiser state and the id map together; the copy for snapshots comes on top (ADR 12)."""
    admit_after: int = Field(default=2, ge=1, le=255)
    """Sightings before an id gets a row of its own; until then it trains its field's cold row."""
    learning_rate: float = Field(default=0.02, gt=0)
    initial_accumulator: float = Field(default=0.1, gt=0)
    accumulator_half_life_ms: DurationMs = Field(default=0, alias="accumulator_half_life")
    """After it (event time) half of a row's past gradients is forgotten, so that its steps do not shrink for ever;
    "0s": never."""


class TrainSettings(_Section):
    """The step."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Of the dense weights, for batches of 64 rows; it grows with the root of their mean size above that (ADR 30)."""
    clip_norm: float = Field(default=10.0, gt=0)
    balancing: str = "fixed"
    inverse_propensity: float = Field(default=0.0, ge=0)
    """Weight of ESCM²'s term for a task with a parent, 0.1 where it is used: its loss on the rows whose parent is
    positive, each over the parent's probability."""
    calibration: bool = False
    """Correct each outcome's probability by online Platt scaling on its labels. Off, since on the simulated
    shop the model's own are off by 1 to 5 % and correcting them cost up to 0.001 NE (docs/components.md)."""
    l1: float = Field(default=0.0, ge=0)
    """Weight of Σ|w|: the dense weights, and the embedding rows that a step touches."""
    l2: float = Field(default=0.0, ge=0)
    """Weight of Σw²/2, of the same."""
    gate_l1: float = Field(default=0.0, ge=0)
    """Weight of Σ|gate| over ``model.field_gates``: a field that does not pay for its gate loses it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of experts that each task's gate leaves out in training; of no effect on a model without gates."""
    threads: int = Field(default=0, ge=0)
    """Threads of a step; 0: one fewer than cores, at most 4."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the first layer's products; `auto`: bfloat16 where the processor computes it natively."""


class EvaluationSettings(_Section):
    """Prequential quality: score, mature, then learn."""

    window_ms: DurationMs = Field(default=HOUR, alias="window")
    """The sliding window of the exported metrics (event time)."""
    detector: str = "adwin"
    ranking: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Share of a task's events whose item is ranked among 99 others, by task; a task not named is not ranked."""
    shadow_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the users by whose examples `learn` compares the model with single-task nets of its width
    (``anabranch_mtl_gain_ne``, learner/gain.py); 0: none."""


class SnapshotSettings(_Section):
    """When and where the model is saved: after ``every`` on the wall clock, or ``every_events``, whichever is first.

    What is learned does not depend on when it is saved, so this timer alone need not run on event time: a replayed
    year is not a snapshot for each of its minutes.
    """

    directory: str = "snapshots"
    every_ms: DurationMs = Field(default=MINUTE, alias="every")
    every_events: int = Field(default=5_000_000, ge=1)
    delta_seconds: float = Field(default=5.0, ge=0, le=86_400)
    """Between two snapshots, what scoring needs of all that changed, so often on the wall clock; 0: never (ADR 20)."""
    keep: int = Field(default=3, ge=1)
    hold_above_ne: float = Field(default=1.0, ge=0)
    """A task that was at or below this normalised entropy (sliding window) and then stays above it holds snapshots
    back: the scorers keep the model before, and the offsets stay where it stands. 0: never."""
    hold_after_ms: DurationMs = Field(default=HOUR, alias="hold_after")
    """How long (event time) it stays above before it holds; it lets go as soon as it is back."""
    quarantine: int = Field(default=20, ge=0)
    """Batches that could not be learned, kept as files in ``quarantine`` in the directory; the newest stay."""


class MemorySettings(_Section):
    """One cap for what grows with the stream (docs/operations.md)."""

    max_mib: float = Field(default=0.0, ge=0)
    """Hard cap on the embedding table, profiles, open exposures with their waiting features, and event ids together.
    The sizes of these that are not set follow from it; 0: each has its own, and there is no common one. Copies for
    snapshots come on top."""


class ServeSettings(_Section):
    """The scoring worker."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    reload_ms: DurationMs = Field(default=SECOND, alias="reload")
    max_items: int = Field(default=1000, ge=1)
    max_body_bytes: int = Field(default=1_000_000, ge=100)


class MetricsSettings(_Section):
    """Where `learn` answers Prometheus; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = Field(default=9108, ge=0, le=65535)


_EXPOSURE_WEIGHT = 0.33

DEFAULT_TASKS = (
    Task(name="content_view"),
    Task.model_validate({"name": "click", "window": "30m"}),
    Task.model_validate({"name": "purchase", "window": "24h"}),
)


_SHAPING: dict[str, Any] = {
    **dict.fromkeys(("mode", "tasks", "fields", "features", "model", "embedding", "negatives", "batch"), True),
    # Which records are read at all (ignore, max_bytes, max_future) shapes nothing.
    "events": {"mapping", "exposure", "orphans", "lateness_ms", "deduplicate_ms", "deduplicate_max", "max_open"},
}


class Settings(_Section):
    """Everything a run depends on."""

    mode: Literal["exposure", "implicit"] = "exposure"
    seed: int = 0
    processes: int = Field(default=0, ge=0)
    """1: ingest and learner share a process; 2: each has one; 0: two where there are two cores. Never more (ADR 22)."""
    tasks: tuple[Task, ...] = Field(default=DEFAULT_TASKS, min_length=1, max_length=16)
    fields: tuple[FieldSpec, ...] = Field(default=(), max_length=64)
    kafka: KafkaSettings = KafkaSettings()
    events: EventSettings = EventSettings()
    features: FeatureSettings = FeatureSettings()
    negatives: NegativeSettings = NegativeSettings()
    batch: BatchSettings = BatchSettings()
    model: ModelSettings = ModelSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    snapshot: SnapshotSettings = SnapshotSettings()
    memory: MemorySettings = MemorySettings()
    serve: ServeSettings = ServeSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, values in (
            ("task names", [task.name for task in self.tasks]),
            ("task events", [task.event_type for task in self.tasks]),
            ("field sources", [field.source for field in self.fields]),
        ):
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"{what} must differ; found {', '.join(repeated)} more than once")
        return self

    @field_validator("processes")
    @classmethod
    def _one_ingest(cls, processes: int) -> int:
        if processes > 2:
            raise ValueError(
                f"a learner has one ingest, in its process (1) or in one of its own (2); found {processes}. Profiles, "
                "co-visits and negatives are of all users together: shared out they know less (ADR 22). Leave it at 0; "
                "models that share no users can each have a learner of their own"
            )
        return processes

    @model_validator(mode="after")
    def _thinned_stream_is_known(self) -> Self:
        if self.negatives.keep < 1 and (self.mode == "implicit" or self.train.calibration):
            raise ValueError(
                "negatives.keep is of exposure mode, and goes without train.calibration, which learns from the same "
                f"labels; found keep {self.negatives.keep:g} in {self.mode} mode, calibration "
                f"{'on' if self.train.calibration else 'off'}. Leave keep out, or change the other"
            )
        return self

    @model_validator(mode="after")
    def _shadow_differs(self) -> Self:
        if self.evaluation.shadow_share and self.model.name == "single_task":
            raise ValueError(
                "evaluation.shadow_share compares the model with single-task nets; found model.name single_task. "
                "Set another model, or shadow_share = 0"
            )
        return self

    @model_validator(mode="after")
    def _funnel_ends(self) -> Self:
        parents = {task.name: task.parent for task in self.tasks}
        for task in self.tasks:
            if not task.parent:
                continue
            if self.mode == "implicit":
                raise ValueError(
                    f"a task has a parent in exposure mode only; found {task.parent} as the parent of {task.name}. "
                    "In implicit mode each task compares items by samples of its own, and no probability is a product"
                )
            if task.parent not in parents:
                raise ValueError(
                    f"a task's parent is another task; found {task.parent} as the parent of {task.name}, expected one "
                    f"of {', '.join(name for name in parents if name != task.name)}"
                )
            if task.event_type == self.events.exposure:
                raise ValueError(
                    f"the exposure's own task has no parent; found {task.parent} as the parent of {task.name}: leave "
                    "it out"
                )
            path = [task.name]
            while above := parents.get(path[-1], ""):
                if above in path:
                    raise ValueError(f"parents must end at a task without one; found {' after '.join([*path, above])}")
                path.append(above)
        return self

    @model_validator(mode="after")
    def _fits_the_memory(self) -> Self:
        for section, sizes in memory_plan.apportion(self).items():
            # Before anybody sees it; a section of its own, so that what nobody chose stays known as such.
            sized = getattr(self, section).model_copy()
            sized.__dict__.update(sizes)
            self.__dict__[section] = sized
        return self

    @property
    def event_types(self) -> tuple[str, ...]:
        """The event types that the stream may hold: the exposure's, then each task's."""
        types = dict.fromkeys(task.event_type for task in self.tasks)
        if self.mode == "exposure":
            types = dict.fromkeys([self.events.exposure, *types])
        return tuple(types)

    @property
    def parents(self) -> tuple[int, ...]:
        """Each task's parent as an index into the tasks; -1: it has none, or every example has passed it."""
        indices = {task.name: k for k, task in enumerate(self.tasks) if task.event_type != self.events.exposure}
        return tuple(indices.get(task.parent, -1) for task in self.tasks)

    @property
    def sampled_tasks(self) -> tuple[bool, ...]:
        """Which tasks learn against sampled items: all in implicit mode, else the exposure's own."""
        return tuple(
            self.mode == "implicit" or (task.event_type == self.events.exposure and self.negatives.exposure > 0)
            for task in self.tasks
        )

    @property
    def task_weights(self) -> tuple[float, ...]:
        """What each task's loss counts in the sum."""
        beside = self.mode == "exposure" and len(self.tasks) > 1
        plain = [_EXPOSURE_WEIGHT if beside and task.event_type == self.events.exposure else 1.0 for task in self.tasks]
        return tuple(own if task.weight is None else task.weight for task, own in zip(self.tasks, plain, strict=True))

    @property
    def immediate_tasks(self) -> tuple[bool, ...]:
        """Which tasks learn an exposure before its label is known (``delay = "fnc_in_loss"``)."""
        return self._outcomes_by("fnc_in_loss")

    @property
    def delay_head_tasks(self) -> tuple[bool, ...]:
        """Which tasks learn an exposure after a wait shorter than its window (``delay = "delay_head"``)."""
        return self._outcomes_by("delay_head")

    @property
    def es_dfm_tasks(self) -> tuple[bool, ...]:
        """Which tasks do so with weights from closed windows (``delay = "es_dfm"``)."""
        return self._outcomes_by("es_dfm")

    def _outcomes_by(self, delay: str) -> tuple[bool, ...]:
        return tuple(
            self.mode == "exposure" and task.event_type != self.events.exposure and task.delay == delay
            for task in self.tasks
        )

    def shaping(self, *, only_changed: bool = False) -> dict[str, Any]:
        """The settings that a snapshot's arrays depend on, plain JSON; a snapshot resumes only under the same ones.

        :param only_changed: without those at their default.
        """
        return self.model_dump(mode="json", by_alias=True, include=_SHAPING, exclude_defaults=only_changed)

    def unsaved(self) -> "Settings":
        """The same for a run that keeps nothing: no cut is due but the one at the end."""
        never = {"every_events": sys.maxsize, "every_ms": sys.maxsize, "delta_seconds": 0.0}
        return self.model_copy(update={"snapshot": self.snapshot.model_copy(update=never)})

    def fingerprint(self) -> str:
        """A short name for the shaping settings. What a later version adds, at its default, does not change it."""
        shaping = self.shaping(only_changed=True)
        return hashlib.sha256(msgspec.json.encode(shaping, order="sorted")).hexdigest()[:16]


def load_settings(
    path: Path | None = None, overrides: dict[str, Any] | None = None, defaults: dict[str, Any] | None = None
) -> Settings:
    """Settings from ``defaults``, a TOML file, the environment and a command's own options, the last one winning.

    :raises SettingsError: the file cannot be read or a value breaks a rule; one line per error, with its path.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: cannot be read: {error.strerror}. Give an existing file with -c.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: not TOML: {error}") from error
    environment = EnvSettingsSource(Settings, env_prefix="ANABRANCH__", env_nested_delimiter="__")()  # type: ignore[arg-type]
    try:
        merged: dict[str, Any] = {}
        for layer in (defaults, content, environment, overrides):
            merged = _merge(merged, layer or {})
        return Settings(**merged)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(path, error))) from error


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _explain(path: Path | None, error: ValidationError) -> list[str]:
    where = f"{path}: " if path else ""
    lines = []
    for item in error.errors():
        location = ".".join(str(part) for part in item["loc"]) or "settings"
        # A password, or what may be one under a misspelt name.
        secret = "pass" in location or (item["type"] == "extra_forbidden" and item["loc"][0] == "kafka")
        found = "" if secret or item["type"] in {"missing", "value_error"} else f" (found {item['input']!r})"
        lines.append(f"{where}{location}: {item['msg'].removeprefix('Value error, ')}{found}")
    return lines


def environment_names() -> list[str]:
    """The settings that the environment overrides now, for the log."""
    return sorted(name for name in os.environ if name.startswith("ANABRANCH__"))
