"""ClassAds as they travel: old syntax, one `Name = expression` a string, to and from classad2.

The C++ library is not made for hostile text: its parser, printer and evaluator recurse until the
stack ends, a string with a surrogate ends the process, half an expression may be read in silence.
So text is checked here (tokens, nesting, lengths) before the library sees it, literals
are made without its parser, and what is read is read through the typed getters.

Bytes that are no UTF-8 stand in an ad as private-use characters (U+EF80 to U+EFFF); `get_str` and
`to_wire` turn them back into what came, as surrogate escapes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar, overload

from classad2 import ClassAd, ClassAdException, ExprTree, Value, parseOne

from cedar import apart, expressions, reach
from cedar.errors import PeerFault

# A stock job ad has about 100, a slot ad about 250.
MAX_ATTRIBUTES = 10_000
MAX_NAME_CHARS = 256
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:$@/+-]*")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_REAL = re.compile(r"-?[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?")
_WORDS = {"true": True, "false": False, "undefined": Value.Undefined, "error": Value.Error}
# A string without quotes and backslashes inside, the most common value.
_PLAIN = re.compile(r'"([^"\\]*)"')

# The library reads these in more forms than those that it prints, and we pass on what it prints.
_DOUBTFUL = re.compile(r"'|\?\s+:")

# The library evaluates a bare name in the other ad too, as stock daemons do, only after its first parse of old ClassAd
# text: a switch of the whole process that is never turned back.
parseOne("OldSemantics = true")

# Values that protect claims: never in answers to queries, in logs or in job directories.
PRIVATE = frozenset({"capability", "childclaimids", "claimid", "claimidlist", "claimids", "transferkey"})
_PRIVATE_PREFIX = "_condor_priv"


def is_private(name: str) -> bool:
    """True for attributes that must only go to peers entitled to them."""
    lower = name.lower()
    return lower in PRIVATE or lower.startswith(_PRIVATE_PREFIX)


def without_private(ad: ClassAd) -> ClassAd:
    """A copy without the private attributes."""
    public = ClassAd()
    for name in ad:
        if not is_private(name):
            public[name] = ad.lookup(name)
    return public


# --- from the wire ---


def from_wire(lines: Sequence[str], most_tokens: int = expressions.MAX_TOKENS) -> ClassAd:
    """An ad from its expressions; of duplicates the last wins. Literals are no tokens.

    Raises PeerFault("classad") for text that is not an ad, PeerFault("limit") for too much of it.
    """
    if len(lines) > MAX_ATTRIBUTES:
        raise PeerFault("limit", "an ad has too many attributes")
    ad, budget = ClassAd(), most_tokens
    for line in lines:
        name, separator, text = line.partition("=")
        name = name.strip()
        if not separator or len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
            raise PeerFault("classad", "an attribute has no proper name")
        budget -= _put(ad, name, text.strip(), budget)
    return ad


def _put(ad: ClassAd, name: str, text: str, budget: int) -> int:
    """Set an attribute; how many tokens of the budget that took."""
    if (plain := _PLAIN.fullmatch(text)) is not None:
        ad[name] = expressions.shield(plain[1])
    elif _INTEGER.fullmatch(text):
        ad[name] = int(text)
    elif _REAL.fullmatch(text):
        ad[name] = float(text)
    elif (word := text.lower()) in _WORDS:
        ad[name] = _WORDS[word]
    else:
        reading = expressions.from_old(text, name, budget)
        ad[name] = _tree(reading.text, name)
        return reading.tokens
    return 0


def parse_expression(text: str) -> ExprTree:
    """An expression in new syntax (a setting, a query). Raises PeerFault("classad" | "limit")."""
    return _tree(expressions.from_new(text, "expression").text, "expression")


def _tree(text: str, name: str) -> ExprTree:
    try:
        tree = ExprTree(text)
        if _DOUBTFUL.search(text) is not None:
            ExprTree(str(tree))
        return tree
    except (ClassAdException, ValueError) as error:
        raise PeerFault("classad", f"the value of {name} is not an expression") from error


def parse_old(text: str) -> ClassAd:
    """An ad from many lines `Name = expression`; empty lines are skipped."""
    return from_wire([line for line in text.split("\n") if line.strip()])


# --- to the wire ---


def to_wire(ad: ClassAd) -> list[str]:
    """One `Name = expression` an attribute, in no particular order."""
    return [f"{name} = {_value_text(ad[name])}" for name in ad]


def _value_text(value: Any) -> str:
    match value:
        case Value():  # an IntEnum: before int
            return "undefined" if value == Value.Undefined else "error"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return expressions.old_literal(value, last=True)
        case ExprTree():
            return expressions.new_to_old(str(value))
        case _:  # reals (exact in the library's form), lists, ads, times
            holder = ClassAd()
            holder["x"] = value
            return expressions.new_to_old(str(holder.lookup("x")))


def set_str(ad: ClassAd, name: str, value: str) -> None:
    """Set a string that may hold surrogate escapes (file names): the library would end the process."""
    ad[name] = expressions.shield(value)


# --- typed getters ---

_REQUIRED: Any = object()
D = TypeVar("D")


def evaluate(ad: ClassAd, name: str, target: ClassAd | None = None) -> Any:
    """The value of an attribute, in Python's types; Value.Undefined when it is missing.

    Bounded: what the library's evaluator could die of or spin on gives Value.Error, after some tens of milliseconds.
    """
    found = _at_once(ad, name, target)
    if found is not _UNBOUNDED:
        return found
    return apart.evaluate(lambda: _evaluated(ad[name], ad, target))


_UNBOUNDED: Any = object()


def _at_once(ad: ClassAd, name: str, target: ClassAd | None = None) -> Any:
    """The value, where finding it out has a small bound."""
    try:
        if name not in ad:
            return Value.Undefined
        value = ad[name]
        if not isinstance(value, ExprTree):
            return value
        if not reach.bounded(ad, name, target):
            return _UNBOUNDED
        return _evaluated(value, ad, target)
    except (ClassAdException, UnicodeError, ValueError, OverflowError):
        return Value.Error


def _evaluated(value: ExprTree, ad: ClassAd, target: ClassAd | None) -> Any:
    try:
        return value.eval(ad) if target is None else value.eval(ad, target)
    except (ClassAdException, UnicodeError, ValueError, OverflowError):
        # A reference without end, half a character, a date beyond the calendar.
        return Value.Error


WHAT_A_QUERY_MAY = "a regular expression in it is written down, repeats characters only, and searches short text"


def wanted(query: ClassAd, ad: ClassAd) -> bool:
    """True when a query asks for this ad: its Requirements hold for it, or it has none.

    Raises PeerFault("limit") for Requirements that could take long: anybody may ask, and each ad is asked.
    """
    if "Requirements" not in query:
        return True
    if not reach.bounded(query, "Requirements", ad):
        raise PeerFault("limit", f"the Requirements of a query are too expensive: {WHAT_A_QUERY_MAY}")
    return matches(query, ad)


def matches(ad: ClassAd, target: ClassAd) -> bool:
    """True when the ad's own Requirements hold for the target; both ways = two calls."""
    value = evaluate(ad, "Requirements", target)
    return value is True or (isinstance(value, int | float) and not isinstance(value, Value) and value != 0)


def _get(ad: ClassAd, name: str, default: Any, wanted: tuple[type, ...], what: str) -> Any:
    value = _at_once(ad, name)
    if isinstance(value, wanted) and not isinstance(value, Value):
        return value
    if default is not _REQUIRED:
        return default
    state = "is missing" if value is Value.Undefined else f"is not {what}"
    raise PeerFault("classad", f"the attribute {name} {state}")


@overload
def get_str(ad: ClassAd, name: str) -> str: ...
@overload
def get_str(ad: ClassAd, name: str, default: D) -> str | D: ...
def get_str(ad: ClassAd, name: str, default: Any = _REQUIRED) -> Any:
    """A string, evaluated. Missing, undefined, of another type, costly: the default, else PeerFault("classad")."""
    value = _get(ad, name, default, (str,), "a string")
    return expressions.unshield(value) if isinstance(value, str) else value


@overload
def get_int(ad: ClassAd, name: str) -> int: ...
@overload
def get_int(ad: ClassAd, name: str, default: D) -> int | D: ...
def get_int(ad: ClassAd, name: str, default: Any = _REQUIRED) -> Any:
    """An integer; booleans count as 0 and 1, reals are cut, as HTCondor does."""
    value = _get(ad, name, default, (int, float), "a number")
    if value is default:
        return value
    try:
        return int(value)
    except (ValueError, OverflowError) as error:  # NaN, infinity
        raise PeerFault("classad", f"the attribute {name} is not a number") from error


@overload
def get_bool(ad: ClassAd, name: str) -> bool: ...
@overload
def get_bool(ad: ClassAd, name: str, default: D) -> bool | D: ...
def get_bool(ad: ClassAd, name: str, default: Any = _REQUIRED) -> Any:
    """A boolean; numbers count as true when not zero, as HTCondor does."""
    value = _get(ad, name, default, (bool, int, float), "a boolean")
    return value if value is default else bool(value)


@overload
def get_real(ad: ClassAd, name: str) -> float: ...
@overload
def get_real(ad: ClassAd, name: str, default: D) -> float | D: ...
def get_real(ad: ClassAd, name: str, default: Any = _REQUIRED) -> Any:
    """A number as a float."""
    value = _get(ad, name, default, (int, float), "a number")
    return value if value is default else float(value)
