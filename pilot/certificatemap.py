"""CERTIFICATE_MAPFILE: which user a certificate's name stands for. Pure; the format is HTCondor's.

Each line is METHOD NAME USER; a line that begins with # is a comment. NAME is a regular expression, searched for in the
certificate's name; with CERTIFICATE_MAPFILE_ASSUME_HASH_KEYS it is the whole name itself, and only /.../ is a regular
expression. \\1 to \\9 in USER are its groups. Double quotes hold blanks together. The first line that fits counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

MAX_CHARS, MAX_LINES = 1_000_000, 20_000
# As stock, which cuts names there; it bounds what an expression costs.
MAX_NAME_CHARS = 1_024
_GROUP = re.compile(r"\\([0-9])")


class BadMap(Exception):
    """A map that cannot be used; the text names line and reason."""


@attrs.frozen
class _Line:
    method: str
    find: Callable[[str], re.Match[str] | None]
    user: str


@attrs.frozen
class CertificateMap:
    """A parsed file."""

    lines: tuple[_Line, ...] = ()

    def user(self, method: str, name: str) -> str | None:
        """The user, as the first fitting line says; None when none fits."""
        if len(name) > MAX_NAME_CHARS:
            return None
        for line in self.lines:
            if line.method == method and (found := line.find(name)) is not None:
                return _GROUP.sub(lambda group: _group(found, int(group[1])), line.user) or None
        return None


def _group(found: re.Match[str], number: int) -> str:
    try:
        return found[number] or ""
    except IndexError:
        return ""


def parse(text: str, *, assume_hash_keys: bool = False) -> CertificateMap:
    """Raises BadMap: a line that stock would pass over may be the one that was to keep somebody out."""
    lines = text.split("\n")
    if len(text) > MAX_CHARS or len(lines) > MAX_LINES:
        raise BadMap(f"more than {MAX_CHARS} characters or {MAX_LINES} lines")
    return CertificateMap(
        tuple(
            _line(number, line.strip(), assume_hash_keys)
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        )
    )


def _line(number: int, text: str, assume_hash_keys: bool) -> _Line:
    if text.startswith("@"):
        raise BadMap(f"line {number}: {text.split()[0][:40]} is not done here; put the lines into this file")
    method, rest, _ = _field(text)
    name, rest, is_regex = _field(rest, slashes=assume_hash_keys)
    user, rest, _ = _field(rest)
    if not name or not user or rest.strip():
        raise BadMap(f"line {number}: not METHOD NAME USER")
    if assume_hash_keys and not is_regex:
        name = rf"\A{re.escape(name)}\Z"
    flags = re.IGNORECASE if "i" in is_regex else 0
    try:
        return _Line(method.upper(), re.compile(name, flags).search, user)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadMap(f"line {number}: not a regular expression: {error}") from None


def _field(text: str, *, slashes: bool = False) -> tuple[str, str, str]:
    """The first field, what follows, and for a regular expression in slashes "/" with its options."""
    text = text.lstrip()
    end = text[:1]
    if end != '"' and not (slashes and end == "/"):
        word = text.split(None, 1)
        return (word[0], text[len(word[0]) :], "") if word else ("", "", "")
    found = re.match(rf"{end}((?:[^{end}\\]|\\.)*){end}(i?)", text)
    if found is None:
        return "", text, ""
    body = found[1].replace(f"\\{end}", end)
    return body, text[found.end() - (len(found[2]) if end == '"' else 0) :], "" if end == '"' else "/" + found[2]
