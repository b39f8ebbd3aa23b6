"""Registries: names, aliases, listings, and the message for a name that does not exist."""

import dataclasses
import math

import pytest

from Utils.errors import UserError
from Utils.registry import Entry, Registry, unknown

FRUIT = Registry(
    "fruit",
    [
        Entry("pear", "math:sqrt", "green"),
        Entry("apple", "math:floor", "red", "Newton 1687"),
        Entry("banana", "os.path:join", "yellow"),
    ],
    aliases={"pomme": "apple"},
)


def test_entries_are_found_by_name_and_alias() -> None:
    assert FRUIT["apple"] is FRUIT["pomme"]
    assert FRUIT["apple"].citation == "Newton 1687"
    assert FRUIT["pear"].load() is math.sqrt
    assert "pomme" in FRUIT
    assert "plum" not in FRUIT


def test_listings_keep_the_order_and_leave_aliases_out() -> None:
    assert FRUIT.names == ("pear", "apple", "banana")
    assert [entry.name for entry in FRUIT] == ["pear", "apple", "banana"]
    assert FRUIT.table() == "  pear    green\n  apple   red\n  banana  yellow"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("aple", "did you mean 'apple'? "),
        ("Banana", "did you mean 'banana'? "),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_unknown_names_get_the_nearest_one_and_all_others(typed: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        FRUIT[typed]
    assert str(caught.value) == f"unknown fruit '{typed}'; {hint}available: apple, banana, pear"


def test_an_empty_registry_has_something_to_say() -> None:
    assert unknown("fruit", "pear", []) == "unknown fruit 'pear'; available: none"


def test_entries_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FRUIT["pear"].name = "plum"  # type: ignore[misc]
