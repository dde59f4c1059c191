#!/usr/bin/python3
"""Counts for the demo, on the worker node, as the job's user; standard library only.

count.py words|letters FROM TO OUT: counts in the lines of chronicle.txt that start in a range of bytes.
count.py merge OUT PART...: adds up counts.
"""

import collections
import json
import os
import re
import sys
import time

# Longer than counting takes: whoever watches the demo's processes is to see each of them.
SEEN_S = 0.5


def part(what: str, start: int, end: int) -> "collections.Counter[str]":
    with open("chronicle.txt", "rb") as file:
        lines = file.read().splitlines(True)
    position = 0
    chosen = []
    for line in lines:
        if start <= position < end:
            chosen.append(line.decode("ascii").lower())
        position += len(line)
    pattern = r"[a-z]+" if what == "words" else r"[a-z]"
    return collections.Counter(re.findall(pattern, "".join(chosen)))


def merge(names: "list[str]") -> "collections.Counter[str]":
    total = collections.Counter()  # type: collections.Counter[str]
    for name in names:
        with open(name) as file:
            total.update(json.load(file))
    return total


def write(name: str, counts: "collections.Counter[str]") -> None:
    with open(name, "w") as file:
        json.dump(dict(counts), file, sort_keys=True)
        file.write("\n")


def main(argv: "list[str]") -> None:
    if argv[0] == "merge":
        write(argv[1], merge(argv[2:]))
    else:
        write(argv[3], part(argv[0], int(argv[1]), int(argv[2])))
    time.sleep(SEEN_S)
    print(json.dumps({"uid": os.getuid(), "gid": os.getgid(), "pid": os.getpid()}))


main(sys.argv[1:])
