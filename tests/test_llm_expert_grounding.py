from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_expert.grounding import Grounded, Grounder, embed_texts, ground, regrounded_share
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
        self.asked: list[list[str]] = []

    def embed(self, texts: list[str]) -> np.ndarray:
        self.asked.append(list(texts))
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


def test_similarities_within_a_millionth_are_one() -> None:
    # cosines with (1, 0): 1 - 3.2e-7 and 1 are a tie, 1 - 5e-6 is not
    query, first = np.array([[1, 0]], np.float32), [1, 8e-4]
    assert ground(query, np.array([first, [1, 0]], np.float32))[0].tolist() == [0]
    assert ground(query, np.array([[1, 3.2e-3], first, [1, 0]], np.float32))[0].tolist() == [1]


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


HOSTILE = (
    "",
    " ",
    "\x00",
    "Por\x00tal",
    "\ud800",
    "Portal \udfff\ud800",
    "&#xD800;",
    "ﷺ" * 500,
    "z" * 10_000,
    "& " * 5_000,
    "\u202eportal\u2028",
    'recommend["Portal"] {0} %s',
)


@given(title=st.one_of(st.text(max_size=40), st.sampled_from(HOSTILE)))
@settings(max_examples=100, deadline=None)
def test_any_text_is_grounded(games: Grounder, title: str) -> None:
    found = games.ground(title, shown=(0,))
    assert found.item in range(1, 6)
    assert -1.0 <= found.similarity <= 1.0
    assert games.ground_many([title], np.arange(6)[None] > 0) == [found]


def test_a_catalogue_of_any_text() -> None:
    titles = [f"{text}{number}" for number, text in enumerate(HOSTILE)]
    items = catalogue(*titles)
    grounder = Grounder(items, TextEmbedder(dim=4).fit(["portal", "halo", "doom", "rust", "zelda"]))
    found = grounder.ground_many(titles, np.ones((len(titles), len(titles)), np.bool_))
    assert [grounded.how for grounded in found] == ["exact"] * len(titles)
    assert [grounded.item for grounded in found] == list(range(len(titles)))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_many_at_once_equal_one_by_one(data: st.DataObject) -> None:
    """Small whole numbers make ties and rows of zeros; titles repeat, some are in the catalogue."""
    whole = st.integers(-2, 2).map(float)
    vectors = data.draw(hnp.arrays(np.float32, (8, 3), elements=whole))
    names = ["Portal", "portal!", "Rust", "Rust", "!?", "Doom", "Doom 2", "Half-Life"]
    unknown = [f"question {number}" for number in range(5)]
    asked = data.draw(hnp.arrays(np.float32, (5, 3), elements=whole))
    said = [*unknown, "Portal", "RUST", "doom", "Doom"]
    embedder = Vectors([], {title: asked[n % 5].tolist() for n, title in enumerate(said)})
    grounder = Grounder(catalogue(*names), embedder, vectors)
    titles = data.draw(st.lists(st.sampled_from(said), max_size=9))
    shape = (len(titles), len(names))
    masks = data.draw(hnp.arrays(np.bool_, shape))
    masks[:, data.draw(st.integers(0, 7))] = True
    together = grounder.ground_many(titles, masks)
    alone = [
        grounder.ground(title, np.flatnonzero(~mask).tolist())
        for title, mask in zip(titles, masks, strict=True)
    ]
    assert together == alone
    for grounded, mask in zip(together, masks, strict=True):
        assert mask[grounded.item]


def test_many_equal_one_by_one_with_real_vectors() -> None:
    rng = np.random.default_rng(0)
    names = ["".join(rng.choice(list("abcdefg"), 8)) for _ in range(300)]
    items = catalogue(*names, *names[:50])  # the last fifty are as near as the first fifty
    embedder = TextEmbedder(dim=32).fit(item_documents(items))
    grounder = Grounder(items, embedder)
    titles = [name[::-1] if number % 3 else name[1:] for number, name in enumerate(names[:64])]
    masks = rng.random((64, 350)) < 0.9
    together = grounder.ground_many(titles, masks)
    assert together == [
        grounder.ground(title, np.flatnonzero(~mask).tolist())
        for title, mask in zip(titles, masks, strict=True)
    ]
    expected, cosine = ground(embedder.embed(titles), embedder.embed(item_documents(items)), masks)
    similar = [row for row, grounded in enumerate(together) if grounded.how == "similar"]
    assert len(similar) > 50
    assert [together[row].item for row in similar] == expected[similar].tolist()
    assert [together[row].similarity for row in similar] == pytest.approx(cosine[similar].tolist())


def test_each_unknown_title_is_embedded_once() -> None:
    embedder = Vectors([], {"x": [1.0, 0.0], "y": [0.0, 1.0]})
    grounder = Grounder(catalogue("Portal", "Rust"), embedder, np.eye(2, dtype=np.float32))
    found = grounder.ground_many(["y", "Rust", "x", "y"], np.ones((4, 2), np.bool_))
    assert [grounded.item for grounded in found] == [1, 1, 0, 1]
    assert embedder.asked == [["y", "x"]]
    grounder.ground_many(["Rust"], np.ones((1, 2), np.bool_))
    assert len(embedder.asked) == 1
    assert grounder.ground_many([], np.ones((0, 2), np.bool_)) == []


def test_of_a_long_question_the_beginning_is_embedded() -> None:
    embedder = Vectors([], {"x" * 1000: [1.0, 0.0]})
    grounder = Grounder(catalogue("Portal", "Rust"), embedder, np.eye(2, dtype=np.float32))
    assert grounder.ground("x" * 10_000) == Grounded(0, "similar", 1.0)


def test_a_row_without_an_allowed_item(games: Grounder) -> None:
    masks = np.array([[True] * 6, [False] * 6])
    with pytest.raises(DataError, match="not yet shown"):
        games.ground_many(["Portal", "Portal"], masks)
    with pytest.raises(DataError, match="not yet shown"):
        games.ground_many(["x", "y"], masks)


@pytest.mark.parametrize("masks", [np.ones((1, 6), bool), np.ones((2, 5), bool), np.ones((2, 6))])
def test_masks_that_do_not_fit_are_told(games: Grounder, masks: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected booleans of shape \(2, 6\)"):
        games.ground_many(["x", "y"], masks)


def test_item_vectors_that_do_not_fit_are_told() -> None:
    with pytest.raises(DataError, match=r"expected \(2, d\)"):
        Grounder(catalogue("Portal", "Rust"), Vectors([], {}), np.eye(3, dtype=np.float32))
    other = Vectors([], {"x": [1.0, 0.0, 0.0]})
    grounder = Grounder(catalogue("Portal", "Rust"), other, np.eye(2, dtype=np.float32))
    with pytest.raises(DataError, match=r"Vectors gave an array of shape \(1, 3\).*\(1, 2\)"):
        grounder.ground("x")


def test_embedded_texts_are_checked_and_of_norm_one() -> None:
    embedder = Vectors([], {"a": [3.0, 4.0], "b": [0.0, 0.0], "c": [np.nan, 0.0], " ": [2.0, 0.0]})
    rows = embed_texts(embedder, ["a", "b", "\ud800"])
    assert rows == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert rows.dtype == np.float32
    with pytest.raises(DataError, match="expected finite numbers"):
        embed_texts(embedder, ["a", "c"])


def test_regrounded_share_by_hand() -> None:
    assert regrounded_share(["exact", "similar", "normalised", "similar", "similar"]) == 0.6
    assert regrounded_share([]) == 0.0
