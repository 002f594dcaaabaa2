from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsim_env.datasets.dataset import Catalogue
from recsim_env.errors import ArtefactError, DataError
from recsim_env.text import TextEmbedder, item_documents, normalise_title

TITLES = [
    "Sid Meier's Civilization V",
    "Civilization IV: Beyond the Sword",
    "Half-Life 2",
    "Half-Life 2: Episode One",
    "Counter-Strike",
    "Farming Simulator 2013",
    "Euro Truck Simulator 2",
    "Portal",
]


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    return TextEmbedder(dim=6).fit(TITLES)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (
            "Sid Meier's Civilization® V: Gods &amp; Kings",
            "sid meiers civilization v gods and kings",
        ),
        ("Pokémon™ ", "pokemon"),
        ("A_b--c", "a b c"),
        ("Baldur’s Gate", "baldurs gate"),
    ],
)
def test_titles_are_normalised(title: str, expected: str) -> None:
    assert normalise_title(title) == expected


def test_documents_hold_title_categories_and_text() -> None:
    catalogue = Catalogue(
        item_ids=("a", "b"),
        titles=("One", "Two"),
        categories=(("Action", "Indie"), ("RPG",)),
        texts=("", "A long tale."),
    )
    assert item_documents(catalogue) == ["One. Action, Indie", "Two. RPG. A long tale."]


def test_a_title_is_nearest_to_itself_misspelled(embedder: TextEmbedder) -> None:
    embedder = TextEmbedder(dim=8).fit(TITLES)
    wrong = ["civilisation 5 sid meier", "half life two episode 1", "truck simulator"]
    near = (embedder.embed(wrong) @ embedder.embed(TITLES).T).argmax(1)
    assert near.tolist() == [0, 3, 6]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6))
def test_rows_have_norm_one(embedder: TextEmbedder, texts: list[str]) -> None:
    vectors = embedder.embed(texts)
    assert vectors.shape == (len(texts), 6)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_fit_is_deterministic_and_takes_a_size(embedder: TextEmbedder) -> None:
    again = TextEmbedder().fit(TITLES, dim=6)
    assert np.array_equal(embedder.embed(TITLES), again.embed(TITLES))


def test_an_identity_is_that_of_the_vectors(embedder: TextEmbedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "text")
    same = (TextEmbedder.load(tmp_path / "text"), TextEmbedder().fit(TITLES, dim=6))
    assert [other.identity for other in same] == [embedder.identity] * 2
    others = (
        TextEmbedder(dim=5).fit(TITLES),
        TextEmbedder(dim=6, n_features=2**14).fit(TITLES),
        TextEmbedder(dim=6).fit(TITLES[:-1]),
        TextEmbedder(dim=6).fit([*TITLES[:-1], "Portal 2"]),
    )
    assert len({other.identity for other in (embedder, *others)}) == 5
    # the projection alone
    turned = TextEmbedder.load(tmp_path / "text")
    turned._projection = -turned._projection
    assert turned.identity != embedder.identity


def test_more_dimensions_than_texts() -> None:
    vectors = TextEmbedder(dim=64).fit(TITLES[:2]).embed(TITLES)
    assert vectors.shape == (8, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_save_and_load(embedder: TextEmbedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "text")
    loaded = TextEmbedder.load(tmp_path / "text")
    assert np.array_equal(embedder.embed(TITLES), loaded.embed(TITLES))
    (tmp_path / "text" / "text.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtefactError, match="whole text embedder"):
        TextEmbedder.load(tmp_path / "text")


def test_bad_use_is_explained() -> None:
    with pytest.raises(DataError, match="call fit"):
        TextEmbedder().embed(["a"])
    with pytest.raises(DataError, match="identity came before fit"):
        _ = TextEmbedder().identity
    with pytest.raises(DataError, match="no texts"):
        TextEmbedder().fit([])
    with pytest.raises(DataError, match="at least 1"):
        TextEmbedder(dim=0)
