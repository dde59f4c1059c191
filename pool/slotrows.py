"""Slots as people see them: rows from stored ads. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pool.ads import is_number, text_of, value_of
from pool.adstore import Stored
from pool.messages import SlotRow
from pool.shadow_state import clean


def slot_rows(stored: Iterable[Stored]) -> list[SlotRow]:
    return sorted((_row(each) for each in stored), key=lambda row: row.name)


def _row(stored: Stored) -> SlotRow:
    ad = stored.public
    return SlotRow(
        name=clean(text_of(ad, "Name")),
        kind=clean(text_of(ad, "SlotType")),
        state=clean(text_of(ad, "State")),
        activity=clean(text_of(ad, "Activity")),
        cpus=_number(ad, "Cpus"),
        memory_mb=_number(ad, "Memory"),
        disk_kb=_number(ad, "Disk"),
        user=clean(text_of(ad, "RemoteUser")),
        job=clean(text_of(ad, "JobId")),
        since=float(_number(ad, "EnteredCurrentState")),
        heard_at=stored.heard_at,
        why=clean(text_of(ad, "SailplaneReason")),
    )


def _number(ad: Any, name: str) -> int:
    value = value_of(ad, name)
    return int(value) if is_number(value) and abs(value) < 2**53 else 0
