"""Writes what a pilot has done by its end (``startd.report``): a table for people, and files for scripts."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from startd.report import Report


def write_report(
    report: Report, directory: Path, *, reason: str, status: int, log: logging.LoggerAdapter[logging.Logger]
) -> None:
    """The table to standard output, the files beside the logs. One that cannot be written ends no pilot badly."""
    now = time.time()
    print(report.as_table(now=now, reason=reason), end="", flush=True)
    files = {
        "pilot-report.json": json.dumps(report.as_json(now=now, reason=reason, status=status), indent=1) + "\n",
        "pilot-report.xml": report.as_xml(now=now, reason=reason, status=status),
    }
    for name, text in files.items():
        try:
            (directory / name).write_text(text, encoding="utf-8")
        except OSError as fault:
            log.warning("%s: %s", directory / name, fault.strerror)
