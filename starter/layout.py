"""How a spawner's memory is laid out before its first fork: the functions that starters use lie side by side.

A forked process copies each page that it writes to, and Python 3.11 writes to whatever it uses: with the code of each
function lie the count of its users and the counters and caches of its instructions. A starter uses a tenth of the
functions that were imported, scattered over all pages. So the spawner goes through a job's first steps, which makes
what is made at a first time, and shows what is used; the code of that is copied to one place.

Only addresses change. A function stays the same object; its code is an equal one. (trio knows by the code itself what
a Ctrl-C must not interrupt; neither spawner nor starters have Python's handler for it.)
"""

from __future__ import annotations

import gc
import marshal
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any

# The code that was copied: given back, it would leave holes all over the heap, and a starter's own objects in them.
_left_behind: list[CodeType] = []


def settle(rehearse: Callable[[], None]) -> int:
    """Put the functions that ``rehearse`` calls side by side; how many they are. Takes three times as long as
    it (a profiler watches the first time), and 15 ms.

    Raises:
        Exception: ``rehearse`` failed; nothing was moved then, if it was at the first time.
    """
    moved = _side_by_side(_used_by(rehearse))
    rehearse()  # the caches of copied instructions are empty
    gc.collect()
    return moved


def _used_by(work: Callable[[], None]) -> dict[int, CodeType]:
    """The code that ran, by identity: equal code need not be the same."""
    found: dict[int, CodeType] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found[id(frame.f_code)] = frame.f_code

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def _side_by_side(used: dict[int, CodeType]) -> int:
    """Copy the code of these functions to one place, with its constants and tables."""
    functions = [each for each in gc.get_objects() if type(each) is FunctionType and id(each.__code__) in used]
    codes = {id(each.__code__): each.__code__ for each in functions}
    copies = dict(zip(codes, marshal.loads(marshal.dumps(tuple(codes.values()))), strict=True))
    for function in functions:
        function.__code__ = copies[id(function.__code__)]
    _left_behind.extend(codes.values())
    return len(functions)
