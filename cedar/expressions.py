"""The text of ClassAd expressions: tokens, limits, and the two ways to write a string.

Old syntax (on the wire) knows one escape in strings, backslash quote; a backslash elsewhere is itself, and
a backslash quote at the very end of the text, or before a line break, is a backslash and the end. New
syntax (what the library reads) escapes backslash, quote and the rest as C does. All but strings is the same.
Text in, text out: the library is not used here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from attrs import frozen

from cedar.errors import PeerFault

# classad2 24.12 with 8 MiB of stack, all of parse, print, copy, compare, flatten, eval: chains of operators
# crash from about 22,500 ("?:") to 28,700 ("+") on, signs ("---1") from 24,000; brackets are refused by
# the library itself below 1,024. A thread's stack may be smaller: stay well below.
MAX_NESTING = 200
MAX_CHAIN = 2_000
# Of one ad, literals not counted: about 30 ms. A stock job ad has a few thousand.
MAX_TOKENS = 50_000

_OLD_STRING = r'"(?:[^"\\]++|\\"(?![\r\n]|\Z)|\\)*+"'
_NEW_STRING = r'"(?:[^"\\]++|\\.)*+"'
_TOKENS = r"""
    [ \t\r\n\f\v]*+
    (?: (?P<string>%s)
      | (?P<operator>(?:[iI][sS](?:[nN][tT])?+(?![A-Za-z0-9_])) | =\?= | =!= | [=!<>]= | << | >>>? | && | \|\|
          | \?: | /(?![/*]) | [-+*%%<>!~&|^?:.=])
      | (?P<plain>[A-Za-z_][A-Za-z0-9_]*+ | '(?:[^'\\]++|\\.)*+'
          | (?:[0-9]++(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?)
      | (?P<open>[(\[{])
      | (?P<close>[)\]}])
      | (?P<stop>[,;])
    )
    [ \t\r\n\f\v]*+
"""
_OLD_TOKEN = re.compile(_TOKENS % _OLD_STRING, re.VERBOSE | re.DOTALL)
_NEW_TOKEN = re.compile(_TOKENS % _NEW_STRING, re.VERBOSE | re.DOTALL)
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_PLAIN_NAME = re.compile(r"'[A-Za-z_][A-Za-z0-9_]*+'")
RESERVED = frozenset({"is", "isnt", "true", "false", "undefined", "error"})


@frozen
class Reading:
    """What one pass over an expression found."""

    text: str  # in new syntax
    depth: int  # levels of recursion, about
    tokens: int


class _Scan:
    """One pass: tokens, brackets, chains of operators; strings are rewritten."""

    def __init__(self, name: str, rewrite: Callable[[str], str], budget: int) -> None:
        self._name = name
        self._rewrite = rewrite
        self._budget = budget
        self._parts: list[str] = []
        self._waiting: list[tuple[str, int]] = []
        self._outer = 0  # operators in the enclosing brackets' chains
        self._chain = 0
        self._deepest = 0
        self._before = ""  # the name or number before this token, or a dot

    def run(self, text: str, pattern: re.Pattern[str]) -> Reading:
        end = tokens = 0
        scanner = pattern.scanner(text)  # type: ignore[attr-defined]  # in no stub, yet in every CPython
        while (token := scanner.match()) is not None:
            end, kind, tokens = token.end(), token.lastgroup, tokens + 1
            if tokens > self._budget:
                raise PeerFault("limit", f"the value of {self._name} is too long")
            if kind == "string":
                self._parts.append(self._rewrite(token["string"]))
                self._before = ""
                continue
            self._parts.append(token[0])
            self._selection(kind, token[kind])
            if kind != "plain":
                self._structure(kind, token[kind])
        if end != len(text) or not text:
            raise PeerFault("classad", f"the value of {self._name} is not an expression")
        if self._waiting:
            raise self._unbalanced()
        return Reading("".join(self._parts), self._deepest, tokens)

    def _selection(self, kind: str, token: str) -> None:
        """The library prints the name after a dot, and a function's, without their quotes: what it then says is another
        expression, or none, for whoever reads it next."""
        before, self._before = self._before, token if kind == "plain" or token == "." else ""
        if kind == "plain" and before == "." and token[0] == "'":
            if _PLAIN_NAME.fullmatch(token) is None or token[1:-1].lower() in RESERVED:
                raise PeerFault("classad", f"the value of {self._name} has a quoted name after a dot")
        elif token == "(" and before[:1] == "'":
            raise PeerFault("classad", f"the value of {self._name} calls a function by a quoted name")
        elif token == "." and before[:1].isdigit():
            raise PeerFault("classad", f"the value of {self._name} selects from a number")

    def _structure(self, kind: str, token: str) -> None:
        if kind == "operator":
            self._chain += 1
            self._measure()
        elif kind == "open":
            self._waiting.append((_PAIRS[token], self._chain))
            self._outer, self._chain = self._outer + self._chain, 0
            self._measure()
        elif kind == "close":
            if not self._waiting or self._waiting[-1][0] != token:
                raise self._unbalanced()
            self._chain = self._waiting.pop()[1]
            self._outer -= self._chain
        elif not self._waiting:
            raise PeerFault("classad", f"more than one expression in the value of {self._name}")
        else:
            self._chain = 0

    def _measure(self) -> None:
        depth = self._outer + self._chain + len(self._waiting)
        if depth > self._deepest:
            self._deepest = depth
            if len(self._waiting) > MAX_NESTING or depth > MAX_CHAIN:
                raise PeerFault("limit", f"the value of {self._name} is nested too deeply")

    def _unbalanced(self) -> PeerFault:
        return PeerFault("classad", f"the brackets in the value of {self._name} do not match")


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """(kind, token) of an expression in new syntax that has been read: string, operator, plain, open, close, stop."""
    for found in _NEW_TOKEN.finditer(text):
        kind = found.lastgroup
        assert kind is not None
        yield kind, found[kind]


# --- strings ---

# Undecodable bytes arrive as U+DC80 to U+DCFF; the library dies of surrogates, so an ad has U+EF80 to U+EFFF.
_SHIELD: dict[int, int | str] = {code: code - 0xDC00 + 0xEF00 for code in range(0xDC80, 0xDD00)}
# Genuine characters of that range are shielded byte by byte: the way back is unique.
_SHIELD |= {code: "".join(chr(0xEF00 + byte) for byte in chr(code).encode()) for code in range(0xEF80, 0xF000)}
_UNSHIELD = {code: code - 0xEF00 + 0xDC00 for code in range(0xEF80, 0xF000)}
_NEEDS_SHIELD = re.compile("[\ud800-\udfff\uef80-\uefff\0]")
_SHIELDED = re.compile("[\uef80-\uefff]")


def shield(text: str) -> str:
    """Text that an ad can hold. Raises ValueError for what never came from bytes."""
    if _NEEDS_SHIELD.search(text) is None:
        return text
    shielded = text.translate(_SHIELD)
    if re.search("[\ud800-\udfff\0]", shielded):
        raise ValueError("a string in an ad cannot hold NUL or lone surrogates")
    return shielded


def unshield(text: str) -> str:
    """The opposite of `shield`, with surrogate escapes for bytes that are no UTF-8."""
    if _SHIELDED.search(text) is None:
        return text
    return text.translate(_UNSHIELD).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


_NEW_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_NEW_NEEDS_ESCAPE = re.compile('[\\\\"\n\r\t]')


def new_literal(text: str) -> str:
    """A string in new syntax."""
    return '"' + _NEW_NEEDS_ESCAPE.sub(lambda found: _NEW_ESCAPES[found[0]], shield(text)) + '"'


def old_literal(text: str, *, last: bool) -> str:
    """A string in old syntax; `last`: nothing follows it in its expression.

    Two things old syntax cannot say: a backslash before the closing quote when more follows, and a quote
    before a line break. They are written as calls that give the string.
    """
    text = unshield(text)
    if "\\" not in text and '"' not in text:
        return f'"{text}"'
    pieces = re.split('(?<=")(?=[\r\n])', text)
    if len(pieces) == 1:
        return _old_piece(text, last=last)
    return "strcat(" + ",".join(_old_piece(piece, last=False) for piece in pieces) + ")"


def _old_piece(text: str, *, last: bool) -> str:
    body = text.replace('"', '\\"')
    if text.endswith("\\") and not last:
        return f'substr("{body} ",0,-1)'
    return f'"{body}"'


_ESCAPED = re.compile(r"\\([0-3]?[0-7]{1,2}|.)|[^\\]+", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v"}


def new_string_value(literal: str) -> str:
    """The text of a literal that the library printed, with surrogate escapes."""
    if "\\" not in literal:
        return literal[1:-1]
    out = bytearray()
    for found in _ESCAPED.finditer(literal[1:-1]):
        code = found[1]
        if code is None:
            out += found[0].encode("utf-8", "surrogateescape")
        elif code.isdigit():
            out.append(int(code, 8))
        else:
            out += _SIMPLE.get(code, code).encode("utf-8", "surrogateescape")
    return out.decode("utf-8", "surrogateescape")


def _old_string_value(literal: str) -> str:
    return literal[1:-1].replace('\\"', '"')


def from_old(text: str, name: str, budget: int = MAX_TOKENS) -> Reading:
    """Check an expression in old syntax, of at most `budget` tokens, and rewrite it for the library.

    Raises PeerFault("classad") for what cannot be one expression, PeerFault("limit") for what is too deep.
    """
    return _Scan(name, lambda literal: new_literal(_old_string_value(literal)), budget).run(text, _OLD_TOKEN)


def from_new(text: str, name: str) -> Reading:
    """The same for new syntax; the text stays as it is."""
    return _Scan(name, str, MAX_TOKENS).run(text, _NEW_TOKEN)


def new_to_old(text: str) -> str:
    """An expression as the library prints it, for the wire."""
    if "\\" not in text and "\n" not in text:
        return text
    return "".join(_rewritten(text)).strip()


# What stands between two tokens stays as it is elsewhere: the library cannot read ``x ?: - 1``.
_LINE_BREAK = re.compile(r"\s*\n\s*")


def _rewritten(text: str) -> Iterator[str]:
    for token in _NEW_TOKEN.finditer(text):
        if (literal := token["string"]) is not None:
            yield old_literal(new_string_value(literal), last=token.end() == len(text))
        else:
            yield token[0] if "\n" not in token[0] else _LINE_BREAK.sub(" ", token[0])
