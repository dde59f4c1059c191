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


def part(what, start, end):
    with open("chronicle.txt", "rb") as file:
        lines = file.read().splitlines(True)
    position, chosen = 0, []
    for line in lines:
        if start <= position < end:
            chosen.append(line.decode("ascii").lower())
        position += len(line)
    pattern = r"[a-z]+" if what == "words" else r"[a-z]"
    return collections.Counter(re.findall(pattern, "".join(chosen)))


def merge(names):
    total = collections.Counter()
    for name in names:
        with open(name) as file:
            total.update(json.load(file))
    return total


def write(name, counts):
    with open(name, "w") as file:
        json.dump(dict(counts), file, sort_keys=True)
        file.write("\n")


def main(argv):
    if argv[0] == "merge":
        write(argv[1], merge(argv[2:]))
    else:
        write(argv[3], part(argv[0], int(argv[1]), int(argv[2])))
    print(json.dumps({"uid": os.getuid(), "gid": os.getgid(), "pid": os.getpid()}))


main(sys.argv[1:])
