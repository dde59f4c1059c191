"""Small things that several parts do to ads: copying, setting, reading with a default. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import classad2

from cedar import classads
from cedar.errors import PeerFault

ClassAd = classad2.ClassAd


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


def evaluate(ad: Any, name: str, target: Any | None = None) -> Any:
    """Evaluated, bounded. What would cost too much is an error of that ad, and nobody else's trouble."""
    try:
        return classads.evaluate(ad, name, target)
    except PeerFault:
        return classad2.Value.Error


def value_of(ad: Any, name: str) -> Any:
    """Evaluated; None when missing, undefined or an error."""
    value = evaluate(ad, name)
    return None if isinstance(value, classad2.Value) else value


def text_of(ad: Any, name: str, default: str = "") -> str:
    """A string, evaluated; the default for anything else."""
    try:
        value: str = classads.get_str(ad, name, default)
    except PeerFault:
        return default
    return value


def whole_of(ad: Any, name: str, default: int = 0) -> int:
    """A whole number that fits into 63 bits; the default for anything else."""
    value = value_of(ad, name)
    return int(value) if is_number(value) and abs(value) < 2**62 else default


def is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, (bool, classad2.Value)):
        return False
    return math.isfinite(value)


def takes(one: Any, other: Any) -> bool:
    """One way: the first one's Requirements are true of the other."""
    try:
        return classads.matches(one, other)
    except PeerFault:
        return False


def matches(one: Any, other: Any) -> bool:
    """Two-way: both Requirements are there and true."""
    return takes(one, other) and takes(other, one)


_HOST = re.compile(r"<(\[[0-9A-Fa-f:.]+\]|[^:?>]+)")


def host_of(address: str) -> str:
    """The host in a sinful string, '' when it is none."""
    found = _HOST.match(address)
    return found.group(1) if found else ""
