"""What a regular expression may cost the library's matcher, which cannot be interrupted. Text in, number out.

Only plain patterns have a bound that means something: a repetition inside a repetition, a reference back or a look
around may take as long as it likes. Those have no bound here, and who wants to evaluate them has to do it elsewhere.
"""

from __future__ import annotations

import math
import re

# Making the matcher, and one step of it; measured with the wheel 24.12 on PCRE2.
COMPILE_NS = 20_000
STEP_NS = 3
# The library's own matcher gives up long before; more than this is no bound.
_MAX_POWER = 4
_ATOM = re.compile(
    r"""(?P<class>\[\^?\]?(?:[^\[\]\\]|\\.)*\])"""
    r"""|(?P<escape>\\[dDwWsSbBtnr]|\\[^A-Za-z0-9])"""
    r"""|(?P<open>\((?:\?:)?(?![?*]))"""
    r"""|(?P<close>\))"""
    r"""|(?P<other>[|^$])"""
    r"""|(?P<plain>[^\\\[\](){}*+?|^$])""",
    re.DOTALL,
)
_REPEAT = re.compile(r"(?:(?P<many>[*+]|\{[0-9]+(?:,[0-9]*)?\})|(?P<maybe>\?))[?+]?")


class _TooHard(Exception):
    pass


def cost_ns(pattern: str, subject_chars: int) -> float:
    """At most so many nanoseconds for one search in so many characters; infinite where nothing can be said."""
    try:
        power, ways = _count(pattern)
    except _TooHard:
        return math.inf
    if power > _MAX_POWER:
        return math.inf
    return COMPILE_NS + STEP_NS * ways * (len(pattern) + 1) * float(subject_chars + 1) ** (power + 1)


def _count(pattern: str) -> tuple[int, int]:
    """(repetitions, in how many ways what is no repetition can go). Every place is tried as a beginning, too."""
    at, power, ways, depth = 0, 0, 1, 0
    while at < len(pattern):
        atom = _ATOM.match(pattern, at)
        if atom is None:
            raise _TooHard
        at, kind = atom.end(), atom.lastgroup
        depth += (kind == "open") - (kind == "close")
        ways += atom[0] == "|"
        if depth < 0:
            raise _TooHard
        repeat = _REPEAT.match(pattern, at)
        if repeat is None:
            continue
        if kind in ("open", "other") or (kind == "close" and repeat["many"]):
            raise _TooHard
        at = repeat.end()
        if repeat["many"]:
            power += 1
        else:
            ways *= 2
    if depth:
        raise _TooHard
    return power, ways * ways
