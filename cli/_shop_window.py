"""The demo's shopper: watches the simulated shop, visits it, asks the scorer."""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import httpx

from contracts.events import Event
from contracts.settings import Settings
from streamer.publish import EventPublisher
from streamer.simulator import ShopSimulator, SimulatorSettings

if TYPE_CHECKING:
    from rich.console import Console

WEIGHTS = {"click": 1.0, "purchase": 20.0}
_FAVOURITES, _OTHERS = 4, 4
_VISITS = 3


class ShopWindow:
    """Publishes the shop's events, remembers enough of them to pick a user and items, and asks for scores."""

    def __init__(self, settings: Settings, events: int, start_ms: int, rate: float, seed: int) -> None:
        windows = {task.name: task.window_ms for task in settings.tasks}
        shop = ShopSimulator(
            SimulatorSettings(
                seed=seed,
                events=events,
                start_ms=start_ms,
                rate=rate,
                n_users=2_000,
                n_items=1_000,
                click_window_ms=windows["click"],
                purchase_window_ms=windows["purchase"],
            )
        )
        self.n_published = 0
        self.favourite = ""
        self._url = f"http://{settings.serve.host}:{settings.serve.port}/v1/rank"
        self._events = shop.events()
        self._publisher = EventPublisher(settings.kafka, settings.kafka.topic)
        self._views: Counter[str] = Counter()
        self._by_category: dict[str, Counter[str]] = defaultdict(Counter)
        self._clicks: dict[str, Counter[str]] = defaultdict(Counter)
        self._category: dict[str, str] = {}
        self._latest: dict[str, Event] = {}
        self._now_ms = start_ms

    def publish_next(self) -> None:
        """The shop's next event."""
        event = next(self._events)
        user, item = str(event.user_id), str(event.item_id)
        self._now_ms = max(self._now_ms, event.ts_ms)
        if event.type == "content_view":
            category = str(event.item.get("category"))
            self._views[user] += 1
            self._category[item] = category
            self._by_category[category][item] += 1
            self._latest[item] = event
        else:
            self._clicks[user][self._category.get(item, "")] += 1
        self._send(event)

    def loyal_user(self) -> str:
        """The user who was shown most."""
        return self._views.most_common(1)[0][0]

    def items_for(self, user: str) -> list[str]:
        """Items of a category that the user hardly clicked on so far, the coming favourite, and popular other ones."""
        known = [
            category
            for category, _ in Counter({c: sum(n.values()) for c, n in self._by_category.items()}).most_common()
        ]
        self.favourite = min(known[:6], key=lambda category: self._clicks[user][category])
        favourites = [item for item, _ in self._by_category[self.favourite].most_common(_FAVOURITES)]
        others = [self._by_category[category].most_common(1)[0][0] for category in known if category != self.favourite]
        return favourites + others[:_OTHERS]

    def visit(self, user: str) -> None:
        """The user views, clicks and buys items of the favourite category, a few times."""
        shown = [item for item, _ in self._by_category[self.favourite].most_common(_FAVOURITES)]
        for visit in range(_VISITS):
            for place, item in enumerate(shown):
                moment_ms = self._now_ms + 1_000 * (visit * _FAVOURITES + place)
                view = self._latest[item]
                request = f"demo-{visit}-{place}"
                for step, kind in enumerate(("content_view", "click", "purchase")):
                    self._send(
                        Event(
                            event_id=f"{request}-{kind}",
                            type=kind,
                            user_id=user,
                            item_id=item,
                            ts_ms=moment_ms + 100 * step,
                            request_id=request,
                            context=view.context,
                            item=view.item,
                        )
                    )

    def rank(self, user: str, items: list[str]) -> dict[str, Any]:
        """The scorer's answer.

        :raises RuntimeError: it is not 200.
        """
        reply = httpx.post(self._url, json={"user_id": user, "items": items, "weights": WEIGHTS}, timeout=10.0)
        if reply.status_code != httpx.codes.OK:
            raise RuntimeError(f"{self._url} answered {reply.status_code}: {reply.text[:500]}")
        answer: dict[str, Any] = reply.json()
        return answer

    def print_scores(
        self, console: "Console", user: str, items: list[str], before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        """Both answers side by side."""
        from rich import box
        from rich.table import Table

        made = Table(
            title=f"POST /v1/rank for user {user}, value = {' + '.join(f'{w:g}·{t}' for t, w in WEIGHTS.items())}; "
            f"model v{before['model_version']} → v{after['model_version']}, "
            f"{after['model_age_s']:.0f} s old, {after['fallback']}",
            box=box.SIMPLE,
        )
        made.add_column("item")
        made.add_column("category")
        for column in ("P(click) before", "after", "P(purchase) before", "after", "rank before", "after"):
            made.add_column(column, justify="right")
        old, new = (
            {str(one["item_id"]): (place, one) for place, one in enumerate(reply["items"], 1)}
            for reply in (before, after)
        )
        for item in sorted(items, key=lambda item: new[item][0]):
            probabilities = old[item][1]["probabilities"], new[item][1]["probabilities"]
            made.add_row(
                item,
                self._category[item],
                *(f"{one[task]:.4f}" for task in WEIGHTS for one in probabilities),
                str(old[item][0]),
                str(new[item][0]),
                style="bold" if self._category[item] == self.favourite else "",
            )
        console.print(made)

    def flush(self) -> None:
        """Wait until everything is with the broker."""
        self._publisher.flush()

    def close(self) -> None:
        """Let go of the broker."""
        self._publisher.close()

    def _send(self, event: Event) -> None:
        self._publisher.publish(event)
        self.n_published += 1
