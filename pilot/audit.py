"""Audit records: who ran what as whom, one JSON object a line, as the site's glexec writes them.

Text of users and peers is a JSON string in ASCII, so no entry can forge another. This module
formats, appends and reads; it decides nothing. It holds no secrets: callers pass identities,
never credentials.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# One write of at most this size: a shorter one on a file opened for appending is not interleaved.
MAX_LINE_BYTES = 16384
_MAX_TEXT_CHARS = 1024
# Where many fields are long, or consist of characters that take twelve bytes each.
_SHORT_TEXT_CHARS = 64


def _bounded(value: object, limit_chars: int) -> object:
    if isinstance(value, str) and len(value) > limit_chars:
        return value[:limit_chars] + "...(cut)"
    if isinstance(value, (list, tuple)):
        return [_bounded(item, limit_chars) for item in value[:limit_chars]]
    return value


def line(event: str, audit_id: str, fields: Mapping[str, object], *, now: float) -> bytes:
    """One record with its line's end; `now` is Unix time. ValueError when it is too long."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    for limit_chars in (_MAX_TEXT_CHARS, _SHORT_TEXT_CHARS):
        record = {"time": stamp, "event": event, "id": _bounded(audit_id, limit_chars)}
        record.update((key, _bounded(value, limit_chars)) for key, value in fields.items())
        data = json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n"
        if len(data) <= MAX_LINE_BYTES:
            return data
    raise ValueError(f"audit record of {len(data)} bytes, allowed are {MAX_LINE_BYTES}")


def append(path: Path, event: str, audit_id: str, **fields: object) -> None:
    """Append one record; the file is made 0600 and never reached through a link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(path, flags, 0o600)
    try:
        os.write(handle, line(event, audit_id, fields, now=time.time()))
    finally:
        os.close(handle)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file in order; a line that is no record (a torn last one) is left out."""
    with path.open("rb") as file:
        for raw in file:
            try:
                record = json.loads(raw)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
