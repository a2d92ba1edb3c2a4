"""The simulated shop's population: its catalogue and its visitors, as columns that change as time goes by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.events import Scalar

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Attributes = dict[str, Scalar | list[Scalar]]

N_CATEGORIES, N_BRANDS, N_LATENT = 24, 60, 8
COUNTRIES = ("de", "fr", "it", "es", "pl", "nl")
DEVICES = ("mobile", "desktop", "tablet")
AGE_GROUPS = ("18-24", "25-34", "35-49", "50+")
N_REMEMBERED = 3
_TREND_HOURS = 1.0


@dataclass(frozen=True)
class World:
    """What tastes are made of: category and brand directions, and what each country and age group leans to."""

    categories: Floats  # [N_CATEGORIES, N_LATENT]
    brands: Floats  # [N_BRANDS, N_LATENT]
    countries: Floats  # [len(COUNTRIES), N_LATENT]
    ages: Floats  # [len(AGE_GROUPS), N_LATENT]
    category_price: Floats  # [N_CATEGORIES], log of the usual price

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "World":
        """A world of its own for each generator state."""
        return cls(
            categories=rng.normal(size=(N_CATEGORIES, N_LATENT)),
            brands=rng.normal(size=(N_BRANDS, N_LATENT)) * 0.4,
            countries=rng.normal(size=(len(COUNTRIES), N_LATENT)) * 0.5,
            ages=rng.normal(size=(len(AGE_GROUPS), N_LATENT)) * 0.5,
            category_price=rng.normal(3.3, 0.7, size=N_CATEGORIES),
        )


class Catalogue:
    """``n`` places for items; a place is taken over when an item leaves and a new one arrives."""

    def __init__(self, world: World, n: int, rng: np.random.Generator) -> None:
        self._world, self._rng = world, rng
        self.number = np.zeros(n, dtype=np.int64)
        self.category = np.zeros(n, dtype=np.int64)
        self.taste = np.zeros((n, N_LATENT))
        self.quality = np.zeros(n)
        self.price = [0.0] * n
        self.log_price = np.zeros(n)
        self.popularity = np.zeros(n)
        self.trend = rng.normal(size=n)
        self.ids: list[str] = [""] * n
        self.attributes: list[Attributes] = [{} for _ in range(n)]
        self.n_ever = 0
        self.replace(np.arange(n))

    def replace(self, places: Ints) -> None:
        """New items at these places, different from each other."""
        rng, n = self._rng, len(places)
        numbers = np.arange(self.n_ever, self.n_ever + n)
        self.n_ever += n
        category, brand = rng.integers(N_CATEGORIES, size=n), rng.integers(N_BRANDS, size=n)
        log_price = self._world.category_price[category] + rng.normal(0, 0.4, size=n)
        self.number[places], self.category[places] = numbers, category
        self.taste[places] = (
            self._world.categories[category] + self._world.brands[brand] + rng.normal(size=(n, N_LATENT)) * 0.3
        )
        self.quality[places] = rng.normal(size=n)
        self.log_price[places] = log_price
        self.popularity[places] = rng.normal(size=n) * 1.2
        for place, number, its_category, its_brand, price in zip(
            places.tolist(),
            numbers.tolist(),
            category.tolist(),
            brand.tolist(),
            np.exp(log_price).tolist(),
            strict=True,
        ):
            self.ids[place], self.price[place] = f"i{number}", round(price, 2)
            self.attributes[place] = {
                "category": f"c{its_category}",
                "brand": f"b{its_brand}",
                "price": self.price[place],
            }

    def move_on(self, seconds: float) -> None:
        """Trends wander, and are forgotten within about an hour."""
        kept = np.exp(-seconds / (3600 * _TREND_HOURS))
        self.trend *= kept
        self.trend += self._rng.normal(size=len(self.trend)) * np.sqrt(1 - kept**2)

    def draw_popular(self, shape: tuple[int, int]) -> Ints:
        """Places of items, drawn by popularity and trend."""
        cumulative = np.cumsum(np.exp(self.popularity + 0.6 * self.trend))
        return _draw(cumulative, self._rng.random(shape))


class Visitors:
    """``n`` places for users; sessions come and go among them, and new users take over the places of old ones."""

    def __init__(self, world: World, n: int, n_sessions: int, rng: np.random.Generator) -> None:
        self._world, self._rng = world, rng
        self.taste = np.zeros((n, N_LATENT))
        self.interest = np.zeros(n, dtype=np.int64)
        self.thrift = np.zeros(n)
        self.device = np.zeros(n, dtype=np.int64)
        self.recent = np.full((n, N_REMEMBERED), -1, dtype=np.int64)
        self.activity = np.cumsum(rng.permutation(1.0 / np.arange(10, n + 10) ** 0.8))
        self.ids: list[str] = [""] * n
        self.attributes: list[Attributes] = [{} for _ in range(n)]
        self.n_ever = 0
        self.replace(np.arange(n))
        self._is_active = np.zeros(n, dtype=np.bool_)
        self._n_sessions = n_sessions
        self.sessions = np.zeros(0, dtype=np.int64)
        while len(self.sessions) < n_sessions:
            self.leave(np.zeros(0, dtype=np.int64), new_share=0.0)

    def replace(self, places: Ints) -> None:
        """New users at these places, different from each other."""
        rng, n = self._rng, len(places)
        country, age = rng.integers(len(COUNTRIES), size=n), rng.integers(len(AGE_GROUPS), size=n)
        taste = self._world.countries[country] + self._world.ages[age] + rng.normal(size=(n, N_LATENT)) * 0.7
        self.taste[places] = taste
        self.thrift[places] = 0.4 + rng.normal(size=n) * 0.3
        self.device[places] = rng.choice(len(DEVICES), size=n, p=(0.65, 0.3, 0.05))
        self.recent[places] = -1
        self.interest[places] = self._pick_interest(taste)
        for offset, (place, its_country, its_age) in enumerate(
            zip(places.tolist(), country.tolist(), age.tolist(), strict=True)
        ):
            self.ids[place] = f"u{self.n_ever + offset}"
            self.attributes[place] = {"country": COUNTRIES[its_country], "age_group": AGE_GROUPS[its_age]}
        self.n_ever += n

    def visit(self, n: int) -> Ints:
        """``n`` users in a session, different from each other."""
        return self.sessions[self._rng.choice(len(self.sessions), size=n, replace=False)]

    def leave(self, users: Ints, new_share: float) -> None:
        """These users' sessions end; others arrive, ``new_share`` of them for the first time."""
        staying = self.sessions[~np.isin(self.sessions, users)]
        self._is_active[users] = False
        # Some arrivals fail, the drawn user being here already: the next call makes up for them.
        self.sessions = np.concatenate([staying, self._arrive(self._n_sessions - len(staying), new_share)])

    def click(self, users: Ints, items: Ints) -> None:
        """The users remember the items, the newest first."""
        self.recent[users] = np.concatenate([items[:, None], self.recent[users, :-1]], axis=1)

    def forget(self, items: Ints) -> None:
        """The items left the catalogue."""
        self.recent[np.isin(self.recent, items)] = -1

    def change_taste(self) -> None:
        """From one moment to the next everyone wants something else."""
        rotation, _ = np.linalg.qr(self._rng.normal(size=(N_LATENT, N_LATENT)))
        self.taste = self.taste @ rotation
        self.interest = self._pick_interest(self.taste)

    def _arrive(self, n: int, new_share: float) -> Ints:
        users: Ints = np.unique(_draw(self.activity, self._rng.random(n)))
        users = users[~self._is_active[users]]
        new = users[self._rng.random(len(users)) < new_share]
        self.replace(new)
        # Clicks are remembered for a session. Half of the returning users look for the same thing as last time.
        changed = users[self._rng.random(len(users)) < 0.5]
        self.interest[changed] = self._pick_interest(self.taste[changed])
        self.recent[users] = -1
        self._is_active[users] = True
        return users

    def _pick_interest(self, taste: Floats) -> Ints:
        leaning = taste @ self._world.categories.T * 0.8  # [n, N_CATEGORIES]
        interest: Ints = np.argmax(leaning + self._rng.gumbel(size=leaning.shape), axis=1)
        return interest


def _draw(cumulative: Floats, uniform: Floats) -> Ints:
    """Places drawn by weights, given as their running sum."""
    drawn: Ints = np.searchsorted(cumulative, uniform * cumulative[-1])
    return np.minimum(drawn, len(cumulative) - 1)
