"""How far evaluating an attribute would reach: asked before the library evaluates hostile ads.

The library's evaluator recurses through references: an attribute with a chain of 100 operators that refers
to itself ends the process, and 30 attributes that each name the next one twice take minutes. The references
of two ads are followed here by name, without evaluating. Branches that are never taken count too.
"""

from __future__ import annotations

from classad2 import ClassAd, ExprTree

from cedar import expressions
from cedar.errors import PeerFault

# Levels of recursion. A plain chain crashes from about 22,500 (8 MiB of stack).
MAX_DEPTH = 5_000
# A reference costs more stack than an operator.
_REFERENCE_DEPTH = 10
# Characters of all expressions after every reference is replaced by what it names: about 0.2 s.
MAX_EXPANDED_CHARS = 4_000_000
# A regular expression may take 0.1 s before its own limit stops it.
_REGEXPS = frozenset(
    {"regexp", "regexps", "regexpmember", "replace", "replaceall", "stringlistregexpmember"}
)
_REGEXP_CHARS = 100_000
# They compare each with each.
_SQUARING = frozenset({"replaceall", "stringlistsintersect", "stringlistsubsetmatch", "stringlistisubsetmatch"})
_SQUARE_CHARS = 64
# They evaluate their argument once for every element of a list.
_REPEATING = frozenset({"countmatches", "evalineachcontext"})
_REPEATS = 100
# It makes expressions from strings, of which nothing can be said; it asks the system for accounts.
_UNKNOWABLE = frozenset({"eval", "userhome"})


class _Unbounded(Exception):
    pass


class _Walk:
    def __init__(self, ad: ClassAd, target: ClassAd | None) -> None:
        self._ads = (ad, target)
        self._known: dict[tuple[int, str], tuple[int, int] | None] = {}

    def cost(self, side: int, name: str) -> tuple[int, int]:
        """(depth, expanded characters) of one attribute."""
        ad = self._ads[side]
        if ad is None or name not in ad:
            return 0, 0
        key = (side, name)
        if key in self._known:
            if (known := self._known[key]) is None:
                raise _Unbounded  # a circle
            return known
        self._known[key] = None
        self._known[key] = result = self._measure(ad, side, name)
        return result

    def _measure(self, ad: ClassAd, side: int, name: str) -> tuple[int, int]:
        value = ad[name]
        if not isinstance(value, ExprTree | list | ClassAd):
            return 1, len(value) if isinstance(value, str) else 1
        text = str(ad.lookup(name))
        reading = expressions.from_new(text, name)
        if not _UNKNOWABLE.isdisjoint(reading.calls):
            raise _Unbounded
        depth, chars = 0, len(text)
        for scope, other in reading.references:
            below, more = self.cost(self._side(side, scope, other), other)
            depth, chars = max(depth, below), chars + more
        chars = _weigh(chars, reading)
        depth += reading.depth + _REFERENCE_DEPTH
        if depth > MAX_DEPTH or chars > MAX_EXPANDED_CHARS:
            raise _Unbounded
        return depth, chars

    def _side(self, side: int, scope: str, name: str) -> int:
        if scope:
            return side if scope == "my" else 1 - side
        ad = self._ads[side]
        return side if ad is not None and name in ad else 1 - side


def _weigh(chars: int, reading: expressions.Reading) -> int:
    """Characters, with those of expensive functions counted as what they cost."""
    calls = frozenset(reading.calls)
    chars += _REGEXP_CHARS * sum(call in _REGEXPS for call in reading.calls)
    if calls & _SQUARING:
        chars *= max(1, chars // _SQUARE_CHARS)
    if calls & _REPEATING:
        chars *= _REPEATS
    return chars


def bounded(ad: ClassAd, name: str, target: ClassAd | None = None) -> bool:
    """True when the attribute can be evaluated in bounded depth and time."""
    try:
        _Walk(ad, target).cost(0, name.lower())
    except (_Unbounded, PeerFault, RecursionError):
        return False
    return True
