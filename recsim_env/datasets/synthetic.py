"""Made-up data in the likeness of Steam, whose truth is known; needs no file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from recsim_env.datasets.dataset import RATING_RANGE, Catalogue, Dataset, Interactions
from recsim_env.datasets.ratings import quantile_ratings
from recsim_env.datasets.sources import Source
from recsim_env.errors import DataError

__all__ = ["SyntheticSource", "synthetic", "true_ratings"]

# Log-weights with which genres are drawn, and the shares of games with 1, 2, ... genres. Together
# they give the shares of Steam-200k: Action 54 %, Indie 47 %, Adventure 28 %, Strategy 26 %,
# RPG 21 %, Simulation 14 %, Casual 13 %, Free to Play 12 %, Massively Multiplayer 5 %, others 3 %.
_GENRES = {
    "Action": 0.0,
    "Indie": -0.2,
    "Adventure": -0.9,
    "Strategy": -1.0,
    "RPG": -1.3,
    "Simulation": -1.7,
    "Casual": -1.8,
    "Free to Play": -1.9,
    "Massively Multiplayer": -2.8,
    "Racing": -3.3,
    "Sports": -3.3,
    "Early Access": -3.3,
}
_GENRE_COUNTS = (0.30, 0.32, 0.23, 0.10, 0.04, 0.01)

_NOUNS = {
    "Action": ("Vanguard", "Assault", "Bullet", "Strike", "Onslaught", "Reckoning"),
    "Indie": ("Lantern", "Paper", "Hollow", "Pixel", "Ember", "Drift"),
    "Adventure": ("Voyage", "Island", "Expedition", "Ruins", "Horizon", "Trail"),
    "Strategy": ("Empires", "Dominion", "Conquest", "Legions", "Frontlines", "Crowns"),
    "RPG": ("Chronicles", "Legends", "Realms", "Prophecy", "Relics", "Oath"),
    "Simulation": ("Tycoon", "Simulator", "Builder", "Railways", "Colony", "Flight"),
    "Casual": ("Puzzle", "Garden", "Match", "Bakery", "Bubbles", "Mahjong"),
    "Free to Play": ("Arena", "Heroes", "Warband", "Clash", "Squad", "Gladiators"),
    "Massively Multiplayer": ("Online", "Worlds", "Guilds", "Factions", "Universe", "Exiles"),
    "Racing": ("Rally", "Circuit", "Drift Kings", "Speedway", "Grand Prix", "Turbo"),
    "Sports": ("Football Manager", "Tennis", "Hockey", "Golf Club", "Basketball", "Ski Jump"),
    "Early Access": ("Survival", "Outpost", "Wastes", "Settlers", "Shelter", "Wilds"),
}
_FIRST_WORDS = (
    "Iron Silent Crimson Starlit Broken Golden Frozen Distant Hidden Burning Emerald Shadow Royal "
    "Ancient Neon Midnight Thunder Crystal Rusty Wandering Savage Gentle Lost Final Velvet Copper "
    "Winter Solar Phantom Sacred"
).split()

_ARCHETYPES = 4
_FACTORS = 3
_LEAST_PLAYS = 3
# Standard deviations of the parts of log-hours; noise is a parameter.
_LOG_HOURS_MEAN = 1.6
_QUALITY, _USER_LEVEL, _TASTE, _FACTOR = 0.5, 0.4, 1.3, 0.3
_QUADRATURE_NODES = 15


@dataclass(frozen=True)
class SyntheticSource(Source):
    """Makes up a catalogue, users with latent tastes and the hours that they played.

    The logarithm of the hours that user u plays game i is normal with the mean

        m(u, i) = 1.6 + quality_i + level_u + 1.3 taste_u . g_i + p_u . q_i

    and the standard deviation `noise`, where g_i are the genres as 0 and 1, scaled to length 1, and
    p, q are factors that no genre tells of. A user's taste is that of one of four kinds of users
    with some of his own. Users meet the games that they would like, and popular games, more often
    than others, so what is missing is not missing at random. Hours become ratings as those of
    Steam do. As on Steam there is no order in time.

    Args:
        n_users: Users, 1 or more.
        n_items: Games, 12 or more.
        seed: Of everything.
        interactions_per_user: Mean number of games that a user played, at least 5; no user
            plays more than half of the catalogue. Raising it makes the truth easier to learn.
        noise: Standard deviation of log-hours around their mean, 0 or more.
        levels: None: continuous ratings; 5: whole stars.
    """

    name: ClassVar[str] = "synthetic"
    n_users: int = 400
    n_items: int = 300
    seed: int = 0
    interactions_per_user: float = 25.0
    noise: float = 0.6
    levels: int | None = None

    def __post_init__(self) -> None:
        if (
            self.n_users < 1
            or self.n_items < len(_GENRES)
            or not 5 <= self.interactions_per_user <= self.n_items
            or not self.noise >= 0
        ):
            raise DataError(
                f"{self} came, expected n_users >= 1, n_items >= {len(_GENRES)}, noise >= 0 and "
                "interactions_per_user from 5 to n_items: change these."
            )

    def load(self, root: str | Path | None = None) -> Dataset:
        """Makes the dataset; `root` is not read."""
        del root
        return self._world.dataset()

    def true_ratings(self) -> npt.NDArray[np.float32]:
        """Returns the expected rating of every user for every game, (n_users, n_items)."""
        return self._world.expected_ratings()

    @cached_property
    def _world(self) -> _World:
        return _World(self)


class _World:
    """The latent truth and what is observed of it."""

    def __init__(self, settings: SyntheticSource) -> None:
        self._settings = settings
        rng = np.random.default_rng(settings.seed)
        n_users, n_items = settings.n_users, settings.n_items
        self._genres = _draw_genres(n_items, rng)
        self._titles = _draw_titles(self._genres, rng)
        kinds = rng.normal(size=(_ARCHETYPES, len(_GENRES)))
        tastes = kinds[rng.integers(_ARCHETYPES, size=n_users)] + 0.35 * rng.normal(
            size=(n_users, len(_GENRES))
        )
        tastes -= tastes.mean(axis=0)
        quality = _QUALITY * rng.normal(size=n_items)
        level = _USER_LEVEL * rng.normal(size=n_users)
        per_game = self._genres / np.sqrt(self._genres.sum(axis=1, keepdims=True))
        factors = rng.normal(size=(n_users, _FACTORS)) @ rng.normal(size=(_FACTORS, n_items))
        liking = _TASTE * tastes @ per_game.T + _FACTOR * factors / np.sqrt(_FACTORS)
        self._mean_log_hours = _LOG_HOURS_MEAN + quality + level[:, None] + liking
        popularity = 0.4 * rng.normal(size=n_items) + 0.5 * quality / _QUALITY
        self._users, self._items = _draw_exposure(
            popularity + 0.7 * liking, settings.interactions_per_user, rng
        )
        noise = settings.noise * rng.normal(size=self._users.size)
        hours = np.exp(self._mean_log_hours[self._users, self._items] + noise)
        self._hours = np.maximum(np.round(hours, 1), 0.1)  # Steam counts in tenths of an hour

    def dataset(self) -> Dataset:
        names = list(_GENRES)
        categories = [tuple(names[j] for j in np.flatnonzero(row)) for row in self._genres]
        return Dataset(
            name=SyntheticSource.name,
            catalogue=Catalogue(
                item_ids=tuple(f"game-{i}" for i in range(len(self._titles))),
                titles=tuple(self._titles),
                categories=tuple(categories),
                texts=tuple(f"Genres: {', '.join(genres)}." for genres in categories),
            ),
            interactions=Interactions(
                self._users.astype(np.int32),
                self._items.astype(np.int32),
                quantile_ratings(self._hours, self._settings.levels),
            ),
            user_ids=tuple(f"player-{u}" for u in range(self._settings.n_users)),
            statistics={
                "source": f"made up in the likeness of Steam, seed {self._settings.seed}",
                "rating_mapping": "quantile of log-hours over all plays",
                "hours_quartiles": np.percentile(self._hours, [25, 50, 75]).round(2).tolist(),
            },
            is_synthetic=True,
        )

    def expected_ratings(self) -> npt.NDArray[np.float32]:
        """Returns E[1 + 4 F(exp(m + noise))], F being the distribution of the hours played.

        The expectation is over the noise, by Gauss-Hermite quadrature.
        """
        hours = np.sort(self._hours)
        nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
        quantile = np.zeros_like(self._mean_log_hours)
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            played = np.exp(self._mean_log_hours + self._settings.noise * node)
            played = np.maximum(np.round(played, 1), 0.1)
            below = np.searchsorted(hours, played, side="left")
            quantile += weight * (below + np.searchsorted(hours, played, side="right")) / 2
        low, high = RATING_RANGE
        ratings: npt.NDArray[np.float64] = low + (high - low) * quantile / hours.size
        return ratings.astype(np.float32)


def synthetic(
    n_users: int = 400,
    n_items: int = 300,
    seed: int = 0,
    *,
    interactions_per_user: float = 25.0,
    noise: float = 0.6,
    levels: int | None = None,
) -> Dataset:
    """Returns made-up data in the likeness of Steam; see `SyntheticSource` for the arguments."""
    return SyntheticSource(n_users, n_items, seed, interactions_per_user, noise, levels).load()


def true_ratings(
    n_users: int = 400,
    n_items: int = 300,
    seed: int = 0,
    *,
    interactions_per_user: float = 25.0,
    noise: float = 0.6,
) -> npt.NDArray[np.float32]:
    """Returns what `synthetic` with the same arguments hides: the expected rating of each pair.

    Returns:
        (n_users, n_items) in [1, 5], free of noise, on the continuous scale.
    """
    return SyntheticSource(n_users, n_items, seed, interactions_per_user, noise).true_ratings()


def _draw_genres(n_items: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Returns which game has which genre, (n_items, n_genres) of 0 and 1; every genre is used."""
    weight = np.array(list(_GENRES.values()))
    counts = 1 + rng.choice(len(_GENRE_COUNTS), size=n_items, p=_GENRE_COUNTS)
    keys = weight + rng.gumbel(size=(n_items, weight.size))
    rank = np.argsort(np.argsort(-keys, axis=1), axis=1)
    genres = (rank < counts[:, None]).astype(np.float64)
    for genre in np.flatnonzero(genres.sum(axis=0) == 0):
        genres[genre, genre] = 1.0
    return genres


def _draw_titles(genres: npt.NDArray[np.float64], rng: np.random.Generator) -> list[str]:
    """Returns a readable title per game, all different; a repeated one is a sequel."""
    names = list(_GENRES)
    seen: dict[str, int] = {}
    titles = []
    for row in genres:
        genre = names[rng.choice(np.flatnonzero(row))]
        title = f"{rng.choice(_FIRST_WORDS)} {rng.choice(_NOUNS[genre])}"
        seen[title] = seen.get(title, 0) + 1
        titles.append(title if seen[title] == 1 else f"{title} {seen[title]}")
    return titles


def _draw_exposure(
    utility: npt.NDArray[np.float64], per_user: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns users and games of the plays: games without replacement, likelier by utility.

    Args:
        utility: Of every user for every game, (n_users, n_items).
        per_user: Mean number of games of a user; the numbers are log-normal.
        rng: Random numbers.
    """
    n_users, n_items = utility.shape
    spread = 0.5
    counts = np.exp(np.log(per_user) - spread**2 / 2 + spread * rng.normal(size=n_users))
    counts = np.clip(np.round(counts), 5, n_items // 2).astype(np.int64)
    keys = utility + rng.gumbel(size=utility.shape)
    rank = np.argsort(np.argsort(-keys, axis=1), axis=1)
    played = rank < counts[:, None]
    for game in np.flatnonzero(played.sum(axis=0) < _LEAST_PLAYS):
        played[np.argsort(-keys[:, game])[:_LEAST_PLAYS], game] = True
    users, items = np.nonzero(played)
    return users, items
