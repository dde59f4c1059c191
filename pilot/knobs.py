"""What a knob is: its name, kind, default, allowed values and meaning, as attrs field metadata.

`pilot.settings` holds the table; the documentation and the example configuration are made from
the same metadata. This module does no I/O and reads no environment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import classad2

from pilot import peers as who
from pilot.quoting import environment_setting

_METADATA = "sailplane.knob"
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_ENVIRONMENT = re.compile(r"\$ENV\([^)]*\)")
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
# Powers of 1024, as in HTCondor's own sizes; the trailing "b" is optional.
_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_TIMES = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


class SettingsError(Exception):
    """A knob has a value that it cannot have; the process ends with exit code 100.

    Attributes:
        knob: the knob's name, or the file's when no knob is to blame.
        value: what was found.
        allowed: what would have been right, in words.
    """

    def __init__(self, knob: str, value: str, allowed: str) -> None:
        super().__init__(f"{knob} = {value!r}: allowed is {allowed}")
        self.knob = knob
        self.value = value
        self.allowed = allowed


@attrs.frozen
class Kind:
    """How a knob's text becomes a value: `parse` raises ValueError, `allowed` says what is right."""

    name: str
    allowed: str
    parse: Callable[[str], Any]
    optional: bool = False


@attrs.frozen
class Knob:
    """One row of the table."""

    name: str
    kind: Kind
    default: str
    meaning: str
    unset: str

    def value(self, text: str) -> Any:
        """The typed value of `text`; SettingsError when it has none."""
        if not text and self.kind.optional:
            return None
        try:
            return self.kind.parse(text)
        except ValueError:
            raise SettingsError(self.name, text, self.kind.allowed) from None


def _evaluate(text: str) -> float:
    """A number, or a ClassAd expression of numbers (`2 * 60`), as HTCondor allows."""
    try:
        value = classad2.ExprTree(text).eval()
    except Exception as error:  # the wheel raises several unrelated classes for bad syntax
        raise ValueError(text) from error
    if isinstance(value, bool) or not isinstance(value, (int, float)) or isinstance(value, classad2.Value):
        raise ValueError(text)
    return value


def _scaled(text: str, units: dict[str, int]) -> float:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return _finite(_evaluate(text), text)
    unit = match[2].lower()
    if len(unit) == 2 and unit.endswith("b"):
        unit = unit[0]
    if unit not in units:
        raise ValueError(text)
    return _finite(float(match[1]) * units[unit], text)


def _finite(value: float, text: str) -> float:
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _bounded(value: float, at_least: float | None, at_most: float | None) -> None:
    if (at_least is not None and value < at_least) or (at_most is not None and value > at_most):
        raise ValueError(str(value))


def _range(what: str, at_least: float | None, at_most: float | None) -> str:
    low = "" if at_least is None else f" from {at_least:g}"
    high = "" if at_most is None else f" up to {at_most:g}"
    return what + low + high


def integer(at_least: int | None = None, at_most: int | None = None, *, optional: bool = False) -> Kind:
    """A whole number, or an expression of numbers that gives one."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else _finite(_evaluate(text), text)
        if value != int(value):
            raise ValueError(text)
        _bounded(value, at_least, at_most)
        return int(value)

    return Kind("integer", _range("a whole number", at_least, at_most), parse, optional)


def number(at_least: float | None = None, at_most: float | None = None) -> Kind:
    """A number without a unit, or an expression of numbers."""

    def parse(text: str) -> float:
        value = float(_finite(_evaluate(text), text))
        _bounded(value, at_least, at_most)
        return value

    return Kind("number", _range("a number", at_least, at_most), parse)


def seconds(at_least: float = 0.0, at_most: float | None = None) -> Kind:
    """A duration: a number of seconds, or with a unit (`90 s`, `20 min`, `2 h`, `1 d`)."""

    def parse(text: str) -> float:
        value = _scaled(text, _TIMES)
        _bounded(value, at_least, at_most)
        return value

    return Kind("seconds", _range("seconds (or with s, min, h, d)", at_least, at_most), parse)


def size(at_least: int = 0) -> Kind:
    """A size in bytes, or with a unit of powers of 1024 (`64 K`, `1 M`, `2 G`, `1 T`)."""

    def parse(text: str) -> int:
        value = _scaled(text, _SIZES)
        _bounded(value, at_least, None)
        return int(value)

    return Kind("bytes", _range("bytes (or with K, M, G, T)", at_least, None), parse)


def path(*, optional: bool = False) -> Kind:
    """An absolute path."""

    def parse(text: str) -> Path:
        if not text.startswith("/") or "\0" in text or "\n" in text:
            raise ValueError(text)
        return Path(text)

    return Kind("path", "an absolute path", parse, optional)


def text(pattern: str = r"[^\x00-\x1f\x7f]*", allowed: str = "text of one line", *, optional: bool = False) -> Kind:
    """Text of one line that matches `pattern`."""
    compiled = re.compile(pattern)

    def parse(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueError(value)
        return value

    return Kind("text", allowed, parse, optional)


def pattern(*, optional: bool = False) -> Kind:
    """A regular expression (Python's), which has to match a whole name."""

    def parse(value: str) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except re.error:
            raise ValueError(value) from None

    return Kind("pattern", "a regular expression", parse, optional)


def choice(*values: str) -> Kind:
    """One of a few words, in any case."""

    def parse(value: str) -> str:
        if value.lower() not in values:
            raise ValueError(value)
        return value.lower()

    return Kind("choice", " or ".join(values), parse)


def yes_or_no() -> Kind:
    """True or False, in the spellings that HTCondor takes."""
    words = {
        "true": True,
        "yes": True,
        "t": True,
        "1": True,
        "false": False,
        "no": False,
        "f": False,
        "0": False,
    }

    def parse(value: str) -> bool:
        try:
            return words[value.lower()]
        except KeyError:
            raise ValueError(value) from None

    return Kind("boolean", "True or False", parse)


def expression(*, optional: bool = False) -> Kind:
    """A ClassAd expression: kept as text, its syntax checked."""

    def parse(value: str) -> str:
        try:
            classad2.ExprTree(f"({value})")  # as it stands in others: the library lets a ; or ] at the end pass alone
        except Exception as error:  # the wheel raises several unrelated classes for bad syntax
            raise ValueError(value) from error
        return value

    return Kind("expression", "a ClassAd expression", parse, optional)


def variables() -> Kind:
    """Variables of an environment: kept as pairs."""

    def parse(value: str) -> tuple[tuple[str, str], ...]:
        return tuple(environment_setting(value).items())

    return Kind("variables", """NAME=VALUE pairs, as "A=1 B='2 3'" in double quotes, or A=1;B=2""", parse)


# Names of one method, as configurations and peers write them.
_METHODS = {"FS": "FS", "SSL": "SSL", "TOKEN": "TOKEN", "SCITOKENS": "SCITOKENS"} | {
    **dict.fromkeys(("TOKENS", "IDTOKEN", "IDTOKENS"), "TOKEN"),
    "SCITOKEN": "SCITOKENS",
}
# HTCondor has them and we do not: passed over, so that one configuration can serve both.
_OTHER_METHODS = frozenset(
    {"FS_REMOTE", "KERBEROS", "PASSWORD", "MUNGE", "CLAIMTOBE", "ANONYMOUS", "NTSSPI", "GSI"},
)


def methods() -> Kind:
    """Methods of authentication in the order of preference, each once, of those that we have."""

    def parse(value: str) -> tuple[str, ...]:
        found = [word.upper() for word in re.split(r"[\s,]+", value) if word]
        if any(word not in _METHODS and word not in _OTHER_METHODS for word in found):
            raise ValueError(value)
        ours = tuple(dict.fromkeys(_METHODS[word] for word in found if word in _METHODS))
        if not ours:
            raise ValueError(value)
        return ours

    return Kind("methods", "a list of FS, TOKEN, SSL and SCITOKENS with at least one of them", parse, optional=True)


def peers(*, optional: bool = False) -> Kind:
    """Users and hosts."""
    return Kind(
        "peers",
        "a list of user@domain, host or user@domain/host with * for anything; a host is an address, a network"
        " (10.0.0.0/8) or localhost",
        who.parse,
        optional,
    )


def names() -> Kind:
    """Names of attributes, with commas or blanks between them; each once."""

    def parse(value: str) -> tuple[str, ...]:
        found = [name for name in re.split(r"[\s,]+", value) if name]
        if any(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", name) is None for name in found):
            raise ValueError(value)
        return tuple({name.lower(): name for name in found}.values())

    return Kind("names", "names of letters, digits and _", parse)


def knob(default: str, kind: Kind, meaning: str, *, unset: str = "", compute: Callable[[], Any] | None = None) -> Any:
    """A field of the settings table.

    Args:
        default: the default as it would stand in a configuration file; may name other knobs
            that stand earlier in the table, as `$(LOCAL_DIR)/log`. Empty: no value.
        kind: how its text is read.
        meaning: one sentence for the documentation, with the reason for the default.
        unset: what an empty value means, in words; for optional knobs.
        compute: gives the value where the text is empty; for what only the machine knows.
    """

    def derive(settings: Any) -> Any:
        if not default and compute is not None:
            return compute()
        return _parsed_default(settings, default, kind)

    return attrs.field(
        default=attrs.Factory(derive, takes_self=True),
        metadata={_METADATA: (default, kind, meaning, unset, compute)},
    )


def _parsed_default(settings: Any, default: str, kind: Kind) -> Any:
    plain = _ENVIRONMENT.sub("", default)
    expanded = _REFERENCE.sub(lambda match: str(getattr(settings, match[1].lower())), plain)
    return None if not expanded and kind.optional else kind.parse(expanded)


def knobs_of(table: type) -> dict[str, Knob]:
    """The rows of a settings class by field name, in the table's order."""
    rows: dict[str, Knob] = {}
    for field in sorted(attrs.fields(table), key=lambda field: field.inherited):  # the table's own come first
        if _METADATA in field.metadata:
            default, kind, meaning, unset, _compute = field.metadata[_METADATA]
            # a field may need a trailing _ where Python keeps the word for itself (CONTINUE)
            rows[field.name] = Knob(field.name.rstrip("_").upper(), kind, default, meaning, unset)
    return rows
