"""A seeded shop whose true probabilities are known: exposures, and the clicks and purchases that follow them."""

import heapq
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from contracts.events import Event
from contracts.settings import HOUR, MINUTE
from streamer.shop import DEVICES, Bools, Catalogue, Floats, Ints, Visitors, World

START_MS = 1_735_689_600_000
"""2025-01-01T00:00:00Z, where a simulation starts unless told otherwise."""

_BLOCK_MS = 10_000
_MIN_BLOCK_REQUESTS = 16
_SESSION_REQUESTS = 6
_CANDIDATES = 40
_CALIBRATION_REQUESTS = 4_000
_WARM_UP_BLOCKS = 30
_POSITION_EFFECT = 0.6


class SimulatorSettings(BaseModel):
    """A shop, told by a few numbers; the same numbers give the same events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    events: int | None = Field(default=None, ge=0)
    """Stop after so many events; None: as ``duration_ms`` says, or never."""
    duration_ms: int | None = Field(default=None, ge=1)
    """Stop after so much event time."""
    start_ms: int = Field(default=START_MS, ge=0, le=1 << 52)
    rate: float = Field(default=200.0, gt=0, le=1e6)
    """Events per second of event time, about."""
    n_users: int = Field(default=20_000, ge=100)
    n_items: int = Field(default=5_000, ge=100)
    list_size: int = Field(default=6, ge=1, le=20)
    """Items shown per request."""
    click_rate: float = Field(default=0.06, gt=0, lt=1)
    """Of exposures, at the start."""
    purchase_rate: float = Field(default=0.13, gt=0, lt=1)
    """Of clicks, at the start."""
    click_window_ms: int = Field(default=30 * MINUTE, ge=10_000)
    purchase_window_ms: int = Field(default=24 * HOUR, ge=20_000)
    """From the exposure. Every outcome comes inside its window, so the stated probabilities are the labels'."""
    click_delay_ms: int = Field(default=15_000, ge=1)
    """Median; the delays are lognormal."""
    purchase_delay_ms: int = Field(default=8 * MINUTE, ge=1)
    """Median, from the click."""
    new_items: float = Field(default=0.5, ge=0)
    """Items that enter the catalogue (and as many that leave) per 1,000 exposures."""
    new_users: float = Field(default=0.1, ge=0, le=1)
    """Share of sessions by a user never seen before."""
    change_at_ms: int | None = Field(default=None, ge=0)
    """Event time after the start when everyone's taste changes at once; None: never."""

    @model_validator(mode="after")
    def _purchase_after_click(self) -> Self:
        if self.purchase_window_ms < self.click_window_ms + 10_000:
            raise ValueError("purchase_window_ms must be longer than click_window_ms: a purchase follows its click")
        return self


class _Lists(NamedTuple):
    """What R users were shown, up to K items each, and the logits of it before the intercepts."""

    users: Ints  # [R]
    items: Ints  # [R, K]
    shown: Bools  # [R, K]; false: the list was shorter
    click: Floats  # [R, K]
    purchase: Floats  # [R, K]


class ShopSimulator:
    """Events in order of event time; every exposure carries the true probability of its labels.

    A visit shows a list, drawn by popularity, trend and taste. A click depends on the user's taste for the item, on
    what the session is about, on quality, trend, position, device, hour, and on whether the item was clicked lately;
    a purchase on quality, price and thrift, and on an earlier click.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        rng = self._rng = np.random.default_rng(settings.seed)
        events_per_request = settings.list_size * (1 + settings.click_rate * (1 + settings.purchase_rate))
        self._requests_per_ms = settings.rate / events_per_request / 1000
        block = round(self._requests_per_ms * _BLOCK_MS)
        # Users of a block differ from each other, and are a sixth of those in a session: about a visit a minute.
        self._n_requests = min(max(block, _MIN_BLOCK_REQUESTS), settings.n_users // (4 * _SESSION_REQUESTS))
        world = World.draw(rng)
        self._catalogue = Catalogue(world, settings.n_items, rng)
        self._visitors = Visitors(world, settings.n_users, self._n_requests * _SESSION_REQUESTS, rng)
        self._click_intercept, self._purchase_intercept = self._calibrate()
        # Ids differ between runs whose events may meet in one topic.
        self._prefix = f"{settings.seed:x}-{settings.start_ms:x}-"
        self._n_events = 0
        self._n_made_requests = 0

    def events(self) -> Iterator[Event]:
        """The stream, in order of ``ts_ms``; to be run through once."""
        left = self.settings.events if self.settings.events is not None else -1
        end_ms = self.settings.start_ms + (self.settings.duration_ms or 1 << 52)
        if left == 0:
            return
        for event in self._merged():
            if event.ts_ms >= end_ms:
                return
            yield event
            left -= 1
            if left == 0:
                return

    def _merged(self) -> Iterator[Event]:
        waiting: list[tuple[int, int, Event]] = []
        block_ms = max(1, round(self._n_requests / self._requests_per_ms))
        start_ms = self.settings.start_ms
        change_ms = None if self.settings.change_at_ms is None else start_ms + self.settings.change_at_ms
        while True:
            if change_ms is not None and start_ms >= change_ms:
                self._visitors.change_taste()
                change_ms = None
            # A block never straddles the change: it takes effect exactly when it was announced.
            span_ms = block_ms if change_ms is None else min(block_ms, change_ms - start_ms)
            n_requests = round(self._n_requests * span_ms / block_ms)
            for exposure, outcomes in self._block(n_requests, start_ms, span_ms):
                while waiting and waiting[0][0] <= exposure.ts_ms:
                    yield heapq.heappop(waiting)[2]
                yield exposure
                for outcome in outcomes:
                    self._n_events += 1
                    heapq.heappush(waiting, (outcome.ts_ms, self._n_events, outcome))
            start_ms += span_ms

    def _block(self, n_requests: int, start_ms: int, span_ms: int) -> Iterator[tuple[Event, list[Event]]]:
        """One block's exposures, in order, each with the outcomes that will follow it."""
        settings, rng = self.settings, self._rng
        ts_ms = np.sort(rng.integers(start_ms, start_ms + span_ms, size=n_requests))
        hours = ts_ms // HOUR % 24
        lists = self._lists(self._visitors.visit(n_requests), hours)
        p_click = _sigmoid(lists.click + self._click_intercept)
        p_bought = _sigmoid(lists.purchase + self._purchase_intercept)  # given a click
        clicked = lists.shown & (rng.random(p_click.shape) < p_click)
        bought = clicked & (rng.random(p_click.shape) < p_bought)
        click_ms, purchase_ms = np.zeros(clicked.shape, dtype=np.int64), np.zeros(clicked.shape, dtype=np.int64)
        click_ms[clicked] = _delays_ms(rng, int(clicked.sum()), settings.click_delay_ms, 1.0, settings.click_window_ms)
        rest_ms = settings.purchase_window_ms - settings.click_window_ms
        purchase_ms[bought] = _delays_ms(rng, int(bought.sum()), settings.purchase_delay_ms, 1.3, rest_ms)

        # Made before the population moves on: a place in it may then belong to someone else.
        made = list(
            self._events_of(
                lists, ts_ms, hours, p_click, p_click * p_bought, clicked, bought, click_ms, click_ms + purchase_ms
            )
        )
        self._move_on(lists, clicked, bought, span_ms)
        return iter(made)

    def _events_of(self, lists: _Lists, ts_ms: Ints, hours: Ints, *columns: Any) -> Iterator[tuple[Event, list[Event]]]:
        """Events of ``[R, K]`` columns: probabilities, outcomes and their delays from the exposure."""
        users, items, prefix = self._visitors, self._catalogue, self._prefix
        devices = users.device[lists.users].tolist()
        of_requests = (ts_ms.tolist(), hours.tolist(), lists.users.tolist(), devices, lists.items.tolist())
        of_lists = (column.tolist() for column in (lists.shown, *columns))
        for ts, hour, user, device, places, *shown_columns in zip(*of_requests, *of_lists, strict=True):
            self._n_made_requests += 1
            request_id, user_id = f"{prefix}r{self._n_made_requests:x}", users.ids[user]
            of_user, position = users.attributes[user], 0
            for place, shown, p_click, p_purchase, clicked, bought, click_ms, purchase_ms in zip(
                places, *shown_columns, strict=True
            ):
                if not shown:
                    continue
                position += 1
                item_id, of_item = items.ids[place], items.attributes[place]
                event_id = f"{request_id}-{position}"
                exposure = Event(
                    event_id=event_id,
                    type="content_view",
                    user_id=user_id,
                    item_id=item_id,
                    ts_ms=ts,
                    request_id=request_id,
                    context={"position": position, "device": DEVICES[device], "hour": hour},
                    item=of_item,
                    user=of_user,
                    truth={"click": p_click, "purchase": p_purchase},
                )
                outcomes = []
                if clicked:
                    outcomes.append(_outcome(exposure, "click", click_ms))
                if bought:
                    outcomes.append(_outcome(exposure, "purchase", purchase_ms, value=items.price[place]))
                yield exposure, outcomes

    def _lists(self, users: Ints, hours: Ints) -> _Lists:
        rng, items, visitors, k = self._rng, self._catalogue, self._visitors, self.settings.list_size
        recent = visitors.recent[users]  # [R, N_REMEMBERED]
        candidates = np.concatenate([items.draw_popular((len(users), _CANDIDATES)), np.maximum(recent, 0)], axis=1)
        affinity = np.einsum("rcd,rd->rc", items.taste[candidates], visitors.taste[users]) * 0.25
        is_interest = items.category[candidates] == visitors.interest[users][:, None]
        is_recent = (candidates[:, :, None] == recent[:, None, :]).any(axis=2)

        # The shop's own ranking: it knows something of taste and interest, not all. Gumbel noise: a random ranking.
        score = 0.5 * affinity + 1.0 * is_interest + 0.5 * is_recent + rng.gumbel(size=candidates.shape)
        score[:, _CANDIDATES:][recent < 0] = -np.inf
        score[_repeated(candidates)] = -np.inf
        best = np.argsort(-score, axis=1, kind="stable")[:, :k]

        def at(values: Any) -> Any:
            return np.take_along_axis(values, best, axis=1)

        chosen = at(candidates)  # [R, K]
        quality, trend, price = items.quality[chosen], items.trend[chosen], items.log_price[chosen]
        seen_before = at(is_recent)
        place = np.log1p(np.arange(chosen.shape[1]))[None, :]
        device = np.array([0.0, 0.2, -0.2])[visitors.device[users]][:, None]
        evening = np.cos((hours - 20) * (2 * math.pi / 24))[:, None]
        click = 0.7 * at(affinity) + 1.0 * at(is_interest) + 0.8 * seen_before + 0.35 * quality + 0.3 * trend
        click = click - _POSITION_EFFECT * place + 0.15 * evening + device
        dear = (price - 3.3) * visitors.thrift[users][:, None]
        purchase = 0.4 * at(affinity) + 0.8 * seen_before + 0.5 * quality - 0.8 * dear + 2 * device
        return _Lists(users, chosen, np.isfinite(at(score)), click, purchase)

    def _move_on(self, lists: _Lists, clicked: Bools, bought: Bools, span_ms: int) -> None:
        rng, items, visitors, settings = self._rng, self._catalogue, self._visitors, self.settings
        remembered = clicked & ~bought
        rows, columns = np.nonzero(remembered)
        visitors.click(lists.users[rows], lists.items[rows, columns])
        n_new = min(rng.poisson(settings.new_items * int(lists.shown.sum()) / 1000), settings.n_items)
        if n_new:
            places = rng.choice(settings.n_items, size=n_new, replace=False)
            visitors.forget(places)
            items.replace(places)
        visitors.leave(lists.users[rng.random(len(lists.users)) < 1 / _SESSION_REQUESTS], settings.new_users)
        items.move_on(span_ms / 1000)

    def _calibrate(self) -> tuple[float, float]:
        """Intercepts that give the wanted rates, over lists as the shop shows them once its sessions are under way."""
        n, settings = self._n_requests, self.settings
        n_blocks = max(_WARM_UP_BLOCKS, -(-_CALIBRATION_REQUESTS // n))
        at_work: list[_Lists] = []
        intercept = -4.0
        for block in range(n_blocks):
            lists = self._lists(self._visitors.visit(n), hours=(np.arange(n) + block) % 24)
            if block >= n_blocks // 2:
                at_work.append(lists)
            elif block % 5 == 0:
                intercept = _intercept(*_weighted([lists], None), settings.click_rate)
            clicked = lists.shown & (self._rng.random(lists.shown.shape) < _sigmoid(lists.click + intercept))
            self._move_on(lists, clicked, np.zeros_like(clicked), _BLOCK_MS)
        intercept = _intercept(*_weighted(at_work, None), settings.click_rate)
        return intercept, _intercept(*_weighted(at_work, intercept), settings.purchase_rate)


def _outcome(exposure: Event, type_: str, delay_ms: int, value: float | None = None) -> Event:
    return Event(
        event_id=f"{exposure.event_id}-{type_}",
        type=type_,
        user_id=exposure.user_id,
        item_id=exposure.item_id,
        ts_ms=exposure.ts_ms + delay_ms,
        request_id=exposure.request_id,
        item=exposure.item,
        user=exposure.user,
        value=value,
    )


def _intercept(logits: Floats, weights: Floats, rate: float) -> float:
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        too_high = np.average(_sigmoid(logits + middle), weights=weights) > rate
        low, high = (low, middle) if too_high else (middle, high)
    return low


def _weighted(some: list[_Lists], click_intercept: float | None) -> tuple[Floats, Floats]:
    """Click logits; or, given the intercept, purchase logits, each weighed by its click's probability."""
    click = np.concatenate([lists.click[lists.shown] for lists in some])
    if click_intercept is None:
        return click, np.ones_like(click)
    return np.concatenate([lists.purchase[lists.shown] for lists in some]), _sigmoid(click + click_intercept)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _repeated(candidates: Ints) -> Bools:
    """Which candidates of a row are further to the left in it, too."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, axis=1)
    again = np.zeros(candidates.shape, dtype=np.bool_)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated


def _delays_ms(rng: np.random.Generator, n: int, median_ms: int, sigma: float, window_ms: int) -> Ints:
    """Lognormal delays, those beyond the window drawn anew: skewed, and all inside it."""
    delays = np.zeros(0)
    for _ in range(100):
        drawn = rng.lognormal(math.log(median_ms), sigma, size=n - len(delays))
        delays = np.concatenate([delays, drawn[drawn < window_ms - 1]])
        if len(delays) == n:
            break
    rest = rng.uniform(0, window_ms - 1, size=n - len(delays))
    # Redrawing put the short delays first: a shuffle makes the places equal again.
    return rng.permutation(np.concatenate([delays, rest])).astype(np.int64) + 1
