"""HTCondor's two ways of writing arguments and environments in one string: V1 and V2. Pure.

Source: execute-side reference 4.4, and the wheel's own functions, which the tests hold this against.

White space is these four characters and no other: a no-break space is part of a word. Every function raises ValueError
for a text that cannot be meant; the words never show what may be secret.
"""

from __future__ import annotations

import re

_BLANK = " \t\r\n"
_WORD_V1 = re.compile(r"[^ \t\r\n]+")
_PIECE_V2 = re.compile(r"[^ \t\r\n']+")
# Between entries of a V1 environment; a text that begins with one of these says by it what parts its entries.
_DELIMITER_V1 = ";"
_LEADING_DELIMITERS_V1 = "!#$%&*+,-/:;<>?@^`|~\x1f"
# The kernel takes 128 KiB a string and 2 MiB in all for argv and environment; more can't be started anyway.
MAX_STRINGS_BYTES = 2 * 1024 * 1024


def split_v1(text: str) -> list[str]:
    """Words between white space; nothing quotes."""
    return _WORD_V1.findall(text)


def split_v2(text: str) -> list[str]:
    """Words between white space; ``'`` quotes, doubled inside quotes it stands for itself."""
    words: list[str] = []
    word: list[str] | None = None
    at = 0
    while at < len(text):
        if text[at] in _BLANK:
            if word is not None:
                words.append("".join(word))
            word, at = None, at + 1
            continue
        if text[at] == "'":
            piece, at = _quoted(text, at + 1)
        else:
            found = _PIECE_V2.match(text, at)
            assert found is not None
            piece, at = found[0], found.end()
        word = [*(word or []), piece]
    if word is not None:
        words.append("".join(word))
    return words


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The quoted piece that starts at ``at`` and the place behind its closing quote."""
    piece: list[str] = []
    while True:
        end = text.find("'", at)
        if end < 0:
            raise ValueError(f"a quote that is opened at or before character {at} does not end")
        piece.append(text[at:end])
        if text[end + 1 : end + 2] != "'":
            return "".join(piece), end + 1
        piece.append("'")
        at = end + 2


def environment_v1(text: str, delimiter: str = "") -> dict[str, str]:
    """Entries between delimiters (``;``, or the one that the text begins with) and line ends; blanks before an entry
    do not count."""
    if text[:1] and text[0] in _LEADING_DELIMITERS_V1:
        delimiter = text[0]
    delimiter = delimiter or _DELIMITER_V1
    entries = (entry.lstrip(_BLANK) for entry in re.split(f"[{re.escape(delimiter)}\n]", text))
    return _variables([entry for entry in entries if entry])


def environment_v2(text: str) -> dict[str, str]:
    """V2 words, each NAME=VALUE."""
    return _variables(split_v2(text))


def environment_setting(text: str) -> dict[str, str]:
    """A knob's value: V2 in double quotes (inside, doubled ones stand for one), else V1."""
    text = text.strip(_BLANK)
    if not text.startswith('"'):
        return environment_v1(text)
    if len(text) < 2 or not text.endswith('"') or text[1:-1].replace('""', "").count('"'):
        raise ValueError("a double quote that does not end, or stands alone inside")
    return environment_v2(text[1:-1].replace('""', '"'))


def _variables(entries: list[str]) -> dict[str, str]:
    check_words(entries, "the environment")
    found: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        name, equals, value = entry.partition("=")
        if not equals and "$$" in entry:
            continue  # a macro that nobody filled in: HTCondor takes it, and no program can look it up
        if not name or not equals:  # never shown: what stands there may be a secret, and the words go into logs
            raise ValueError(f"entry {number} of the environment is not NAME=VALUE")
        found[name] = value
    return found


def check_words(words: list[str], what: str) -> None:
    """ValueError for what no program can be given."""
    if any("\0" in word for word in words):
        raise ValueError(f"{what} hold a NUL character, which no program can be given")
    if sum(len(word.encode("utf-8", "surrogateescape")) + 1 for word in words) > MAX_STRINGS_BYTES:
        raise ValueError(f"{what} are longer than {MAX_STRINGS_BYTES} bytes, the most that a program can be given")
