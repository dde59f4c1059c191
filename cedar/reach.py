"""How far evaluating an attribute would reach: asked before the library evaluates hostile ads.

The library's evaluator recurses through references: an attribute with a chain of 100 operators that refers
to itself ends the process, and 30 attributes that each name the next one twice take minutes. The references
of two ads are followed here by name, without evaluating. Branches that are never taken count too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from attrs import frozen
from classad2 import ClassAd, Value

from cedar import expressions
from cedar.errors import PeerFault

# Levels of recursion. A plain chain crashes from about 22,500 (8 MiB of stack).
MAX_DEPTH = 5_000
# A reference costs more stack than an operator.
_REFERENCE_DEPTH = 10
# Characters of all expressions after every reference is replaced by what it names: about 0.2 s.
MAX_EXPANDED_CHARS = 4_000_000
# Of a query, which anybody may ask, and which is asked of every ad: two regular expressions, some 0.5 s at worst.
MAX_QUERY_CHARS = 300_000
# A regular expression may take 0.1 s before its own limit stops it, and has been seen to take 0.25 s.
_REGEXPS = frozenset({"regexp", "regexps", "regexpmember", "replace", "replaceall", "stringlistregexpmember"})
_REGEXP_CHARS = 100_000
# They compare each with each.
_SQUARING = frozenset({"replaceall", "stringlistsintersect", "stringlistsubsetmatch", "stringlistisubsetmatch"})
_SQUARE_CHARS = 64
# They evaluate their argument once for every element of a list.
_REPEATING = frozenset({"countmatches", "evalineachcontext"})
_REPEATS = 100
# It makes expressions from strings, of which nothing can be said; it asks the system for accounts.
_UNKNOWABLE = frozenset({"eval", "userhome"})
# The same Requirements are asked against many ads. 256 of this length cost some 40 MB at worst.
_CACHED_CHARS = 8_000


class _Unbounded(Exception):
    pass


@frozen
class _Shape:
    """What one expression adds."""

    depth: int
    chars: int
    references: tuple[tuple[str, str], ...]
    calls: tuple[str, ...]


def _shape(text: str) -> _Shape:
    return _cached_shape(text) if len(text) <= _CACHED_CHARS else _new_shape(text)


def _new_shape(text: str) -> _Shape:
    depth = expressions.from_new(text, "expression").depth
    found = list(expressions.names(text))
    calls = tuple(name for _, name, call in found if call)
    if not _UNKNOWABLE.isdisjoint(calls):
        raise _Unbounded
    return _Shape(depth, len(text), tuple((scope, name) for scope, name, call in found if not call), calls)


_cached_shape = lru_cache(maxsize=256)(_new_shape)


_LITERALS = frozenset({int, str, bool, float, Value})
_MISSING = object()


class _Walk:
    def __init__(self, ad: ClassAd, target: ClassAd | None, most_chars: int) -> None:
        self._ads = (ad, target)
        self._most_chars = most_chars
        self._known: dict[tuple[int, str], tuple[int, int] | None] = {}

    def cost(self, side: int, scope: str, name: str) -> tuple[int, int]:
        """(depth, expanded characters) of an attribute, as the ad on this side sees it."""
        if scope != "target":
            value = self._value(side, name)
            if value is not _MISSING or scope == "my":
                return self._cost(side, name, value)
        return self._cost(1 - side, name, self._value(1 - side, name))

    def _value(self, side: int, name: str) -> Any:
        ad = self._ads[side]
        try:
            return _MISSING if ad is None else ad[name]
        except KeyError:
            return _MISSING

    def _cost(self, side: int, name: str, value: Any) -> tuple[int, int]:
        if type(value) in _LITERALS:
            return 1, len(value) if type(value) is str else 1
        if value is _MISSING:
            return 0, 0
        key = (side, name)
        if key in self._known:
            if (known := self._known[key]) is None:
                raise _Unbounded  # a circle
            return known
        self._known[key] = None
        self._known[key] = result = self._measure(side, name)
        return result

    def _measure(self, side: int, name: str) -> tuple[int, int]:
        ad = self._ads[side]
        assert ad is not None
        shape = _shape(str(ad.lookup(name)))
        depth, chars = 0, shape.chars
        for scope, other in shape.references:
            below, more = self.cost(side, scope, other)
            depth, chars = max(depth, below), chars + more
        chars = _weigh(chars, shape.calls)
        depth += shape.depth + _REFERENCE_DEPTH
        if depth > MAX_DEPTH or chars > self._most_chars:
            raise _Unbounded
        return depth, chars


def _weigh(chars: int, calls: tuple[str, ...]) -> int:
    """Characters, with those of expensive functions counted as what they cost."""
    chars += _REGEXP_CHARS * sum(call in _REGEXPS for call in calls)
    if not _SQUARING.isdisjoint(calls):
        chars *= max(1, chars // _SQUARE_CHARS)
    if not _REPEATING.isdisjoint(calls):
        chars *= _REPEATS
    return chars


def bounded(ad: ClassAd, name: str, target: ClassAd | None = None, most_chars: int = MAX_EXPANDED_CHARS) -> bool:
    """True when the attribute can be evaluated in bounded depth and time."""
    try:
        _Walk(ad, target, most_chars).cost(0, "my", name.lower())
    except (_Unbounded, PeerFault, RecursionError):
        return False
    return True
