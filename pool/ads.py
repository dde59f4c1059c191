"""Small things that several parts do to ads: copying, setting, reading with a default. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import classad2

from cedar import classads

ClassAd = classad2.ClassAd

# The wheel's library evaluates a bare name in the other ad too, as stock daemons do, only after its first parse of
# old ClassAd text (a switch of the whole process that is never turned back).
classad2.parseOne("OldSemantics = true")


def copy_of(ad: Any) -> Any:
    result = ClassAd()
    for name in ad:
        result[name] = ad.lookup(name)
    return result


def put(ad: Any, name: str, value: object) -> None:
    """Set one attribute; text may hold surrogate escapes; None takes the attribute out."""
    if value is None:
        ad.pop(name, None)
    elif isinstance(value, str):
        classads.set_str(ad, name, value)
    else:
        ad[name] = value


def complete(ad: Any, more: Mapping[str, object]) -> Any:
    """A copy of the ad with some attributes set or, where None, taken out."""
    result = copy_of(ad)
    for name, value in more.items():
        put(result, name, value)
    return result


def value_of(ad: Any, name: str) -> Any:
    """Evaluated, bounded; None when missing, undefined or an error."""
    value = classads.evaluate(ad, name)
    return None if isinstance(value, classad2.Value) else value


def text_of(ad: Any, name: str, default: str = "") -> str:
    value: str = classads.get_str(ad, name, default)
    return value


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, (bool, classad2.Value))


def matches(one: Any, other: Any) -> bool:
    """Two-way: both Requirements are there and true."""
    return classads.matches(one, other) and classads.matches(other, one)


_HOST = re.compile(r"<(\[[0-9A-Fa-f:.]+\]|[^:?>]+)")


def host_of(address: str) -> str:
    """The host in a sinful string, '' when it is none."""
    found = _HOST.match(address)
    return found.group(1) if found else ""
