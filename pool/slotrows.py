"""Slots as people see them: rows from stored ads. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pool.ads import text_of, whole_of
from pool.adstore import Stored
from pool.messages import SlotRow
from pool.shadow_state import clean

# A row must fit into a page whatever an execution point says of itself.
MAX_WORDS = 200


def slot_rows(stored: Iterable[Stored]) -> list[SlotRow]:
    return sorted((_row(each) for each in stored), key=lambda row: row.name)


def _row(stored: Stored) -> SlotRow:
    ad = stored.public
    return SlotRow(
        name=_words(text_of(ad, "Name")),
        kind=_words(text_of(ad, "SlotType")),
        state=_words(text_of(ad, "State")),
        activity=_words(text_of(ad, "Activity")),
        cpus=whole_of(ad, "Cpus"),
        memory_mb=whole_of(ad, "Memory"),
        disk_kb=whole_of(ad, "Disk"),
        user=_words(text_of(ad, "RemoteUser")),
        job=_words(text_of(ad, "JobId")),
        since=float(whole_of(ad, "EnteredCurrentState")),
        heard_at=stored.heard_at,
        why=_words(text_of(ad, "SailplaneReason")),
    )


def _words(text: str) -> str:
    return clean(text)[:MAX_WORDS]
