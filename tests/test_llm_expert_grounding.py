from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_expert import Grounded, Grounder, ground
from recsim_env.datasets.dataset import Catalogue
from recsim_env.errors import DataError
from recsim_env.text import TextEmbedder, item_documents


def catalogue(*titles: str) -> Catalogue:
    n = len(titles)
    return Catalogue(tuple(map(str, range(n))), titles, (("Action",),) * n, ("",) * n)


class Vectors:
    """An embedder whose vectors are given: the catalogue's in order, then one per question."""

    def __init__(self, items: list[list[float]], questions: dict[str, list[float]]) -> None:
        self.items = np.asarray(items, np.float32)
        self.questions = questions

    def embed(self, texts: list[str]) -> np.ndarray:
        if len(texts) == len(self.items):
            return self.items
        return np.asarray([self.questions[text] for text in texts], np.float32)


@pytest.fixture(scope="module")
def games() -> Grounder:
    items = catalogue(
        "Portal 2",
        "Sid Meier's Civilization® V",
        "Portal",
        "Farm Simulator 2013",
        "PORTAL",
        "Farm Simulator 2015",
    )
    return Grounder(items, TextEmbedder(dim=5).fit(item_documents(items)))


def test_ground_by_hand() -> None:
    items = np.array([[1, 0], [3, 4], [0, 2]], np.float32)
    # cosines with (0, 5): 0, 4/5, 1; with (1, 1): 0.7071, 7/(5 sqrt 2) = 0.9899, 0.7071
    found, cosine = ground(np.array([[0, 5], [1, 1]], np.float32), items)
    assert found.tolist() == [2, 1]
    assert cosine == pytest.approx([1.0, 0.98995], abs=1e-5)
    allowed = np.array([[True, True, False], [True, False, True]])
    found, cosine = ground(np.array([[0, 5], [1, 1]], np.float32), items, allowed)
    assert found.tolist() == [1, 0]  # the second is a tie of 0 and 2
    assert cosine == pytest.approx([0.8, 0.70711], abs=1e-5)


def test_ground_with_nothing_allowed() -> None:
    with pytest.raises(DataError, match="not yet shown"):
        ground(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), np.zeros(3, bool))


def test_a_row_of_zeros_is_similar_to_nothing() -> None:
    items = np.array([[0, 0], [0.1, 0]], np.float32)
    found, cosine = ground(np.array([[-1, 0]], np.float32), items)
    assert found.tolist() == [0]
    assert cosine.tolist() == [0.0]


@settings(max_examples=60, deadline=None)
@given(
    items=hnp.arrays(np.float32, (12, 3), elements=st.integers(-2, 2).map(float)),
    question=hnp.arrays(np.float32, (3,), elements=st.integers(-2, 2).map(float)),
    shown=st.sets(st.integers(0, 11), max_size=11),
)
def test_the_index_and_the_equation_agree(
    items: np.ndarray, question: np.ndarray, shown: set[int]
) -> None:
    """Small whole numbers make many ties: both have to take the lowest index."""
    names = catalogue(*(f"item {i}" for i in range(12)))
    grounder = Grounder(names, Vectors(items.tolist(), {}))
    allowed = np.ones(12, bool)
    allowed[list(shown)] = False
    expected, cosine = ground(question[None], items, allowed)
    found = grounder.nearest(question, shown)
    assert found.item == expected[0]
    assert found.item not in shown
    assert found.similarity == pytest.approx(float(cosine[0]), abs=1e-5)


def test_a_tie_longer_than_the_first_search() -> None:
    names = catalogue(*(f"item {i}" for i in range(40)))
    grounder = Grounder(names, Vectors([[1.0, 0.0]] * 40, {"x": [1.0, 0.0]}))
    assert grounder.ground("x", shown=range(3)) == Grounded(3, "similar", 1.0)


@pytest.mark.parametrize(
    ("title", "shown", "item", "how"),
    [
        ("Portal", (), 2, "exact"),
        ("  Portal ", (), 2, "exact"),
        ("PORTAL", (), 4, "exact"),
        ("portal™", (), 2, "normalised"),
        ("Portal", (2,), 4, "normalised"),
        ("sid meiers civilization v", (), 1, "normalised"),
        ("Farming Simulator 2013", (), 3, "similar"),
        ("Farming Simulator 2013", (3,), 5, "similar"),
        ("Farm Simulator 2013", (3,), 5, "similar"),
    ],
)
def test_rules_in_their_order(
    games: Grounder, title: str, shown: tuple[int, ...], item: int, how: str
) -> None:
    found = games.ground(title, shown)
    assert (found.item, found.how) == (item, how)
    assert -1.0 <= found.similarity <= 1.0 + 1e-6


def test_lookup_does_not_guess(games: Grounder) -> None:
    assert games.lookup("Farming Simulator 2013") is None
    assert games.lookup("") is None
    assert games.lookup("!?") is None
    assert games.lookup("Portal", shown=(2, 4)) is None


def test_all_shown(games: Grounder) -> None:
    with pytest.raises(DataError, match="larger catalogue"):
        games.ground("Portal", shown=range(6))


def test_repr_shows_sizes(games: Grounder) -> None:
    assert repr(games) == "Grounder(n_items=6, dim=5)"
