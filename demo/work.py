"""What the demo's users compute, as submit files, and what must come out. Does no I/O.

Each user counts something in a chronicle, in parts; a last job merges the parts. The expected
result is counted here in another way than the jobs do it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

# As many as the demo's execution point has cores for, one user's at a time.
PARTS = 4
INPUT = "chronicle.txt"
PROGRAM = "count.py"
# What each user counts.
COUNTS = {"alice": "words", "bob": "letters"}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_COMMON = """\
executable = count.py
x509userproxy = proxy
should_transfer_files = YES
when_to_transfer_output = ON_EXIT
request_cpus = 1
request_memory = 64
request_disk = 4096
"""


def part_names() -> list[str]:
    """The parts' output files, in order."""
    return [f"part.{number}.json" for number in range(PARTS)]


def result_name(what: str) -> str:
    """The merged output file."""
    return f"{what}.json"


def parts_submit(what: str, size_bytes: int) -> str:
    """The submit file of the parts: each job gets a range of bytes."""
    step = -(-size_bytes // PARTS)
    ranges = "".join(f"{start} {min(start + step, size_bytes)}\n" for start in range(0, size_bytes, step))
    return f"""{_COMMON}\
arguments = {what} $(first) $(last) part.$(Process).json
transfer_input_files = {INPUT}
output = part.$(Process).out
error = part.$(Process).err
queue first, last from (
{ranges})
"""


def merge_submit(what: str) -> str:
    """The submit file of the last job."""
    return f"""{_COMMON}\
arguments = merge {result_name(what)} {" ".join(part_names())}
transfer_input_files = {", ".join(part_names())}
output = merge.out
error = merge.err
queue
"""


def expected(what: str, text: str) -> dict[str, int]:
    """The counts of the whole text, found in another way than the jobs find them."""
    lower = text.lower()
    if what == "letters":
        return {letter: lower.count(letter) for letter in _LETTERS if letter in lower}
    spaced = "".join(sign if sign in _LETTERS else " " for sign in lower)
    return dict(Counter(spaced.split()))


def fault(what: str, outputs: Mapping[str, bytes], text: str) -> str | None:
    """What is wrong with a user's outputs, None if nothing is."""
    try:
        counted = json.loads(outputs[result_name(what)])
    except KeyError:
        return f"{result_name(what)} did not come back"
    except ValueError:
        return f"{result_name(what)} is not JSON"
    wanted = expected(what, text)
    if counted != wanted:
        differing = sorted(key for key in {*wanted, *counted} if wanted.get(key) != counted.get(key))
        return f"{result_name(what)} has wrong counts, first of {differing[0]!r}"
    return None
