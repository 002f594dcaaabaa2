from __future__ import annotations

import pytest

from ilrec_sb3.lea import VARIANTS, Variant
from recsim_env.errors import DataError

SUFFIXES = ("LER", "LES", "LES'", "LEA", "LEAR", "LEAS", "LEASR", "LEAS'R", "sv", "q", "sv+q")


def test_all_names_are_there_and_no_others() -> None:
    expected = {"Normal", "Normal-sv"}
    for framework in ("SNQN", "SA2C"):
        expected |= {framework} | {f"{framework}-{suffix}" for suffix in SUFFIXES}
    assert set(VARIANTS) == expected


@pytest.mark.parametrize(
    ("name", "variant", "needs"),
    [
        ("Normal", Variant("Normal"), set()),
        ("Normal-sv", Variant("Normal", augmented_supervised=True), {"augmented"}),
        ("SNQN", Variant("SNQN"), set()),
        ("SNQN-LER", Variant("SNQN", rewards=True), {"rewards"}),
        ("SA2C-LES", Variant("SA2C", state="joined"), {"states"}),
        ("SA2C-LES'", Variant("SA2C", state="environment"), {"states"}),
        ("SNQN-LEA", Variant("SNQN", False, "backbone", True, True), {"augmented"}),
        ("SNQN-LEAR", Variant("SNQN", True, "backbone", True, True), {"augmented", "rewards"}),
        ("SA2C-LEAS", Variant("SA2C", False, "joined", True, True), {"augmented", "states"}),
        (
            "SA2C-LEASR",
            Variant("SA2C", True, "joined", True, True),
            {"augmented", "states", "rewards"},
        ),
        (
            "SA2C-LEAS'R",
            Variant("SA2C", True, "environment", True, True),
            {"augmented", "states", "rewards"},
        ),
        ("SA2C-sv", Variant("SA2C", augmented_supervised=True), {"augmented"}),
        ("SA2C-q", Variant("SA2C", augmented_q=True), {"augmented"}),
    ],
)
def test_names_say_what_is_used(name: str, variant: Variant, needs: set[str]) -> None:
    assert Variant.parse(name) == variant
    assert variant.name == name
    assert variant.needs == needs
    assert variant.learns_q == (not name.startswith("Normal"))


def test_two_names_of_one_variant() -> None:
    assert Variant.parse("SA2C-sv+q") == Variant.parse("SA2C-LEA")
    assert Variant.parse("SA2C-sv+q").name == "SA2C-LEA"


def test_settings_without_a_name_tell_their_fields() -> None:
    assert "rewards=True" in Variant("SNQN", rewards=True, state="joined").name


def test_bad_names_are_explained() -> None:
    with pytest.raises(DataError, match="did you mean 'SA2C-LEASR'"):
        Variant.parse("SA2C-LEASRR")
    with pytest.raises(DataError, match="no variant 'Normal-LER'"):
        Variant.parse("Normal-LER")
    with pytest.raises(DataError, match="no Q head"):
        Variant("Normal", rewards=True)
    with pytest.raises(DataError, match="no Q head"):
        Variant("Normal", augmented_q=True)
