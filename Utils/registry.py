"""Registries: frozen entries that drive factories, ``--help``, listings, tests and errors."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from Utils.errors import UserError


@dataclass(frozen=True)
class Entry:
    """What every registry entry has.

    Attributes:
        name: the value the user types.
        builder: ``"package.module:function"``, imported when first used, so that listing a
            registry costs nothing.
        description: one line for ``--help`` and the listings.
        citation: the paper or library the entry comes from; empty for common knowledge.
    """

    name: str
    builder: str
    description: str
    citation: str = ""

    def load(self) -> Callable[..., Any]:
        """The function that ``builder`` names."""
        module, _, function = self.builder.partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return loaded


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """The entries of one kind, by name.

    Args:
        kind: what the entries are, for messages ("model", "metric").
        entries: in the order in which they are listed.
        aliases: other names, each for an entry's name.
    """

    def __init__(self, kind: str, entries: Iterable[E], aliases: dict[str, str] | None = None):
        self.kind = kind
        self.aliases = aliases or {}
        self._entries = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[E]:
        return iter(self._entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self._entries or name in self.aliases

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in listing order, without aliases."""
        return tuple(self._entries)

    def __getitem__(self, name: str) -> E:
        """The entry called ``name``; raises :class:`UserError` with a suggestion if none is."""
        try:
            return self._entries[self.aliases.get(name, name)]
        except KeyError:
            raise UserError(unknown(self.kind, name, self.names)) from None

    def table(self) -> str:
        """One line per entry: name and description, aligned."""
        width = max(map(len, self.names))
        return "\n".join(f"  {e.name:<{width}}  {e.description}" for e in self)


def unknown(
    kind: str, value: str, available: Iterable[str], prefix: str = "", listing: str = ""
) -> str:
    """The message for a name that does not exist, with the nearest one that does.

    Args:
        kind: what was looked up ("model").
        value: what the user typed.
        available: the names that exist.
        prefix: what all names begin with when they are typed, which makes none of them near.
        listing: where to find the names, if they are too many for a line.
    """
    names = sorted(available)
    near = difflib.get_close_matches(value.removeprefix(prefix), names, n=1, cutoff=0.5)
    hint = f"did you mean '{prefix}{near[0]}'? " if near else ""
    every = listing or f"available: {', '.join(names) or 'none'}"
    return f"unknown {kind} '{value}'; {hint}{every}"
