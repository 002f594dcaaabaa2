from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import numpy as np
import pytest

from recsim_env.errors import DataError
from recsim_env.settings import check_range, check_types, fits, from_mapping, in_words


def older_style(x: Optional[str]) -> None:  # noqa: UP045 - as in Stable-Baselines3
    del x


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [3, np.int64(3)], [3.0, "3", True, np.bool_(True), None]),
        (float, [3, 3.5, np.float32(1)], ["3", False, None, [1.0]]),
        (bool, [True, np.bool_(False)], [1, "no", None]),
        (str, ["x", ""], [3, None, ["x"]]),
        (int | None, [3, None], ["3"]),
        (typing.get_type_hints(older_style)["x"], ["x", None], [3]),
        (Literal["a", "b"], ["a"], ["c", 1]),
        (float | Callable[[float], float], [1, abs], ["fast"]),
        (tuple[float, float], [(1.0, 2), [1, 2.0]], [[1.0], [1.0, "x"], 1.0]),
        (tuple[int, ...], [(), (1, 2), [3]], [["x"], 3, "12"]),
        (list[int], [[1], []], [[1.5], {}, "1"]),
        (Sequence[str], [["a"], ("a", "b")], ["ab", [1]]),
        (dict[str, int], [{"a": 1}, {}], [{"a": "x"}, [1]]),
        (Mapping[str, Any], [{"a": object()}], [[("a", 1)], None]),
        (type[Exception], [ValueError], ["ValueError"]),
        (Exception, [ValueError()], ["x"]),
        (Any, [1, "x", None], []),
    ],
)
def test_what_fits_a_type(hint: Any, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if not fits(value, hint)] == []
    assert [value for value in wrong if fits(value, hint)] == []


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "a whole number"),
        (float | str, "a number or text"),
        (bool, "true or false"),
        (Literal["a", "b"], "'a' or 'b'"),
        (tuple[int, ...] | Sequence[str], "a list"),
        (Mapping[str, Any], "a table"),
        (type[Exception], "a class"),
        (Callable[[int], int], "a function"),
        (Exception, "a Exception"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert in_words(hint) == words


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    names: tuple[str, ...] = ("a",)
    sweep: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)


def test_fields_are_of_their_types() -> None:
    assert from_mapping(Settings, {"steps": 4, "sweep": {"x": [1, 2.0]}}).steps == 4
    with pytest.raises(DataError, match=r"^steps='3' came; expected a whole number\.$"):
        from_mapping(Settings, {"steps": "3"})
    with pytest.raises(DataError, match=r"^names='ab' came; expected a list\.$"):
        from_mapping(Settings, {"names": "ab"})
    with pytest.raises(DataError, match=r"^sweep\.x=3 came; expected a list\.$"):
        from_mapping(Settings, {"sweep": {"y": [1], "x": 3}})
    with pytest.raises(DataError, match="did you mean 'steps'"):
        from_mapping(Settings, {"stpes": 3})


@dataclass(frozen=True)
class Numbers:
    count: int | None = None
    share: float = 0.5


def test_ranges_hold_their_ends_and_nothing_outside() -> None:
    for numbers in (Numbers(), Numbers(1), Numbers(2, 0.0), Numbers(2, 1.0)):
        check_range(numbers, "count", least=1)
        check_range(numbers, "share", least=0, most=1)
    with pytest.raises(DataError, match=r"^count=0 came; expected 0.1 or more\.$"):
        check_range(Numbers(0), "share", "count", least=0.1)
    for share in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(DataError, match=rf"^share={share} came; expected 0 to 1\.$"):
            check_range(Numbers(1, share), "count", "share", least=0, most=1)
    with pytest.raises(DataError, match="share=inf came; expected 0 or more"):
        check_range(Numbers(1, float("inf")), "share", least=0)
