"""What evaluating an attribute would cost at most: asked before the library evaluates hostile ads in this thread.

The library's evaluator recurses through references and cannot be interrupted: a chain of 100 operators that refers to
itself ends the process, 30 attributes that each name the next one twice take minutes, and so may one regular
expression. The references of two ads are followed here by name, without evaluating; branches that are never taken
count too. What has no small bound is for ``cedar.apart``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from attrs import frozen
from classad2 import ClassAd, Value

from cedar import expressions, regexcost
from cedar.errors import PeerFault

# Levels of recursion. A plain chain crashes from about 22,500 (8 MiB of stack).
MAX_DEPTH = 5_000
# A reference costs more stack than an operator.
_REFERENCE_DEPTH = 10
# Of one evaluation in this thread. The estimate is some ten times what ordinary expressions take.
MAX_NS = 20_000_000
# Looking at an expression costs about 1 us a token here, 5 ms in all: of all that one evaluation reaches.
MAX_LOOKED_AT_CHARS = 16_000
# Measured with the wheel 24.12: a token, and what a function does with each character of its arguments.
_TOKEN_NS, _CHAR_NS = 150, 30
# What a number may become as text (a real one has up to 22 characters), and any other token ("false").
_NUMBER_CHARS, _TOKEN_CHARS = 25, 5
# Functions that look at their arguments once and give no more than they got, but for a constant.
_LINEAR = frozenset(
    [
        "isundefined", "iserror", "isstring", "isinteger", "isreal", "islist", "isclassad", "isboolean", "isabstime",
        "isreltime", "member", "identicalmember", "size", "sum", "avg", "min", "max", "anycompare", "allcompare",
        "time", "currenttime", "timezoneoffset", "daytime", "getyear", "getmonth", "getdayofyear", "getdayofmonth",
        "getdayofweek", "getdays", "gethours", "getminutes", "getseconds", "strcat", "toupper", "tolower", "substr",
        "strcmp", "stricmp", "versioncmp", "versionle", "versionlt", "versionge", "versiongt", "versioneq",
        "version_in_range", "int", "real", "string", "bool", "abstime", "reltime", "floor", "ceil", "ceiling",
        "round", "pow", "quantize", "random", "ifthenelse", "interval", "stringlistsize", "stringlistsum",
        "stringlistavg", "stringlistmin", "stringlistmax", "stringlistmember", "stringlistimember", "splitusername",
        "splitslotname", "split", "envv1tov2", "mergeenvironment", "listtoargs", "argstolist",
    ]
)  # fmt: skip
# They compare each with each.
_SQUARING = frozenset({"stringlistsintersect", "stringlistsubsetmatch", "stringlistisubsetmatch"})
_SEARCHING = frozenset({"regexp", "regexpmember", "stringlist_regexpmember", "stringlistregexpmember"})
# They evaluate their first argument once for each element of a list of ads (devices).
_REPEATING = frozenset({"countmatches", "evalineachcontext"})
# Names of whole ads, with which an attribute can be named by a string; and what the library puts beside two ads.
_ADS = frozenset(
    [
        "my", "target", "other", "self", "parent", "toplevel", "root", "ad", "left", "right", "lctx", "rctx",
        "symmetricmatch", "leftmatchesright", "rightmatchesleft",
    ]
)  # fmt: skip
# The same expressions are asked again and again, against many ads.
_REMEMBERED = 256

Reference = tuple[str, str]


class _Unbounded(Exception):
    pass


@frozen
class _Search:
    """A call that searches for a regular expression in ``chars`` characters of its own text and these references."""

    pattern: str
    chars: int
    references: tuple[Reference, ...]


@frozen
class _Repeat:
    """A call that evaluates ``tokens`` tokens and these references in each ad of a list."""

    tokens: int
    references: tuple[Reference, ...]
    over: Reference


@frozen
class _Shape:
    """What one expression adds."""

    depth: int
    tokens: int
    chars: int
    """Of its tokens as values, without what it refers to."""
    references: tuple[Reference, ...]
    calls: int
    squares: int
    searches: tuple[_Search, ...]
    repeats: tuple[_Repeat, ...]
    elements: int
    """Of a list that stands by itself; 0 for anything else."""


def _shape(text: str) -> _Shape:
    shape = _known_shape(text)
    if shape is None:
        raise _Unbounded
    return shape


@lru_cache(maxsize=_REMEMBERED)
def _known_shape(text: str) -> _Shape | None:
    """None for what has no bound: that is remembered, too."""
    try:
        return _new_shape(text)
    except (_Unbounded, PeerFault):
        return None


def _new_shape(text: str) -> _Shape:
    depth = expressions.from_new(text, "expression").depth
    tokens = list(expressions.tokens(text))
    references, calls = _names(tokens)
    squares = 0
    found: list[_Search] = []
    repeats: list[_Repeat] = []
    for at, name in calls:
        if name in _SEARCHING:
            found.append(_search(tokens, at))
        elif name in _REPEATING:
            repeats.append(_repeat(tokens, at))
        elif name in _SQUARING:
            squares += 1
        elif name not in _LINEAR:
            raise _Unbounded
    return _Shape(
        depth, len(tokens), _chars(tokens), references, len(calls), squares, tuple(found), tuple(repeats),
        sum(1 for _ in _arguments(tokens, 0)) if tokens[0][1] == "{" else 0,
    )  # fmt: skip


def _chars(tokens: Sequence[tuple[str, str]]) -> int:
    return sum(len(text) if kind == "string" else _token_chars(text) for kind, text in tokens)


def _token_chars(text: str) -> int:
    return _NUMBER_CHARS if _is_number(text) else _TOKEN_CHARS


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or (text[:1] == "." and len(text) > 1)


def _names(tokens: Sequence[tuple[str, str]]) -> tuple[tuple[Reference, ...], list[tuple[int, str]]]:
    """References, and calls with their places. A nested ad that refers to itself has no bound here."""
    references: list[Reference] = []
    calls: list[tuple[int, str]] = []
    definitions: set[str] = set()
    free: set[str] = set()
    scope, after_dot = "", False
    for at, (kind, text) in enumerate(tokens):
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind == "plain" and not _is_number(text):
            name = text.strip("'").lower()
            if following == "(":
                calls.append((at, name))
            elif following == "=":
                definitions.add(name)
            elif following == "." and name in ("my", "target") and not after_dot:
                scope = name
                continue
            elif text.lower() not in expressions.RESERVED:
                references.append((scope, name))
                if scope or not after_dot:
                    free.add(name)
        if text != ".":
            scope = ""
        after_dot = text == "."
    if not definitions.isdisjoint(free) or any(name in _ADS for _, name in references):
        raise _Unbounded
    return tuple(references), calls


def _search(tokens: Sequence[tuple[str, str]], at: int) -> _Search:
    """The call whose name stands there. Only a pattern that is written down can be judged."""
    pattern, subject, *options = _arguments(tokens, at + 1)
    if len(pattern) != 1 or pattern[0][0] != "string":
        raise _Unbounded
    for option in options:
        if len(option) != 1 or option[0][0] != "string" or not set(option[0][1].lower()) <= set('"ifms, '):
            raise _Unbounded
    references, calls = _names(subject)
    if calls:
        raise _Unbounded
    return _Search(expressions.new_string_value(pattern[0][1]), _chars(subject), references)


def _repeat(tokens: Sequence[tuple[str, str]], at: int) -> _Repeat:
    """The call whose name stands there. Only a list that has a name is looked for."""
    what, over, *_ = _arguments(tokens, at + 1)
    (references, calls), (lists, _) = _names(what), _names(over)
    if calls or len(lists) != 1 or len(over) > 3 or over[-1][0] != "plain":
        raise _Unbounded
    return _Repeat(len(what), references, lists[0])


def _arguments(tokens: Sequence[tuple[str, str]], at: int) -> Iterator[list[tuple[str, str]]]:
    """Those of the call whose bracket opens there; at least two, perhaps empty."""
    argument: list[tuple[str, str]] = []
    depth = given = 0
    for kind, text in tokens[at:]:
        depth += (kind == "open") - (kind == "close")
        if depth == 0 or (depth == 1 and text == ","):
            yield argument
            argument, given = [], given + 1
            if depth == 0:
                break
        elif (kind, depth) != ("open", 1):
            argument.append((kind, text))
    yield from ([] for _ in range(2 - given))


@frozen
class _Cost:
    """``chars``: of the value as text. ``ns``: what it takes to get it."""

    depth: int
    chars: int
    ns: float


_MISSING_COST = _Cost(0, 0, 0.0)
_LITERALS = frozenset({int, str, bool, float, Value})
_MISSING = object()


class _Walk:
    def __init__(self, ad: ClassAd, target: ClassAd | None) -> None:
        self._ads = (ad, target)
        self._looked_at = 0
        self._shapes: dict[tuple[int, str], _Shape] = {}
        self._known: dict[tuple[int, str], _Cost | None] = {}

    def cost(self, side: int, scope: str, name: str) -> _Cost:
        """Of an attribute, as the ad on this side sees it."""
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

    def _cost(self, side: int, name: str, value: Any) -> _Cost:
        if type(value) in _LITERALS:
            return _Cost(1, len(value) if type(value) is str else _NUMBER_CHARS, _TOKEN_NS)
        if value is _MISSING:
            return _MISSING_COST
        key = (side, name)
        if key in self._known:
            if (known := self._known[key]) is None:
                raise _Unbounded  # a circle
            return known
        self._known[key] = None
        self._known[key] = result = self._measure(side, name)
        return result

    def _shape(self, side: int, name: str) -> _Shape:
        """Of an attribute that is there."""
        key = (side, name)
        if key not in self._shapes:
            ad = self._ads[side]
            assert ad is not None
            text = str(ad.lookup(name))
            self._looked_at += len(text)
            if self._looked_at > MAX_LOOKED_AT_CHARS:
                raise _Unbounded
            self._shapes[key] = _shape(text)
        return self._shapes[key]

    def _measure(self, side: int, name: str) -> _Cost:
        shape = self._shape(side, name)
        depth, chars, ns = 0, shape.chars, 0.0
        for scope, other in shape.references:
            below = self.cost(side, scope, other)
            depth, chars, ns = max(depth, below.depth), chars + below.chars, ns + below.ns
        ns += _TOKEN_NS * shape.tokens + chars + _CHAR_NS * chars * shape.calls
        ns += _CHAR_NS * float(chars) * chars * shape.squares
        for search in shape.searches:
            ns += self._searched(side, search)
        for repeat in shape.repeats:
            each = sum(self.cost(side, scope, name).ns for scope, name in repeat.references)
            ns += self._elements(side, *repeat.over) * (each + _TOKEN_NS * repeat.tokens)
        depth += shape.depth + _REFERENCE_DEPTH
        if depth > MAX_DEPTH or ns > MAX_NS:
            raise _Unbounded
        return _Cost(depth, chars, ns)

    def _elements(self, side: int, scope: str, name: str) -> int:
        """How many ads a list has, all of them plain: what is looked up there costs nothing more."""
        at = 1 - side if scope == "target" or (not scope and self._value(side, name) is _MISSING) else side
        if self._value(at, name) is _MISSING:
            return 0
        shape = self._shape(at, name)
        for inner_scope, element in shape.references:
            value = self._value(at, element)
            if inner_scope or value is _MISSING:
                raise _Unbounded
            plain = self._shape(at, element)
            if plain.references or plain.calls:
                raise _Unbounded
        if not shape.elements:
            raise _Unbounded
        return shape.elements

    def _searched(self, side: int, search: _Search) -> float:
        chars = search.chars + sum(self.cost(side, scope, name).chars for scope, name in search.references)
        return regexcost.cost_ns(search.pattern, chars)


def bounded(ad: ClassAd, name: str, target: ClassAd | None = None) -> bool:
    """True when the attribute can be evaluated here, in bounded depth and time."""
    try:
        _Walk(ad, target).cost(0, "my", name.lower())
    except (_Unbounded, PeerFault, RecursionError):
        return False
    return True
