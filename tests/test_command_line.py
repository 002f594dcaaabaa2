from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from recsim_env import command_line as cl
from recsim_env.errors import DataError


def test_pairs_are_split_at_the_first_equals_sign() -> None:
    assert cl.pairs(["a=1", "b=x=y", "a=2", "c="], "--set") == {"a": "2", "b": "x=y", "c": ""}


@pytest.mark.parametrize("value", ["a", "=1", ""])
def test_what_is_no_pair_is_refused(value: str) -> None:
    with pytest.raises(DataError, match=r"^--set .*expected KEY=VALUE\.$"):
        cl.pairs([value], "--set")


def test_values_are_json_where_they_are() -> None:
    given = ["n=3", "share=0.5", "on=true", "none=null", "name=steam", "many=[1, 2]", "n2=03"]
    assert cl.json_pairs(given, "--set") == {
        "n": 3,
        "share": 0.5,
        "on": True,
        "none": None,
        "name": "steam",
        "many": [1, 2],
        "n2": "03",
    }


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (cl.positive, "1", 1),
        (cl.positive, "10_000", 10_000),
        (cl.positive, "10,000", 10_000),
        (cl.seed, "0", 0),
        (cl.device, "cuda:1", "cuda:1"),
        (cl.device, "auto", "auto"),
    ],
)
def test_arguments_are_read(read: Callable[[str], Any], text: str, value: Any) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (cl.positive, "0"),
        (cl.positive, "-3"),
        (cl.positive, "1.5"),
        (cl.seed, "-1"),
        (cl.seed, "x"),
        (cl.device, "tpu"),
        (cl.device, "cuda:"),
    ],
)
def test_arguments_are_refused(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' came; expected"):
        read(text)


def test_shared_arguments_and_their_defaults() -> None:
    parser = argparse.ArgumentParser()
    cl.add_data(parser, default="steam")
    cl.add_common(parser)
    assert vars(parser.parse_args([])) == {
        "dataset": "steam",
        "data": None,
        "option": [],
        "cache": None,
        "progress": True,
        "verbose": False,
    }
    given = ["--option", "a=1", "--option", "b=2", "--no-progress", "-v"]
    found = parser.parse_args(given)
    assert (found.option, found.progress, found.verbose) == (["a=1", "b=2"], False, True)


def test_markdown_goes_into_a_pipe_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    cl.say("first")
    cl.show("| a |\n|---|")
    assert capsys.readouterr().out == "first\n| a |\n|---|\n"
