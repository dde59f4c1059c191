"""OSGTestResult documents, version 4.3.1: what glidein scripts report of one test or step. Every value is escaped."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

VERSION = "4.3.1"
# A reader does not want more of one value; whoever wrote it may have wanted to fill a disk.
MAX_CHARACTERS = 4000


def document(identity: str, *, ok: bool, metrics: Sequence[tuple[str, str]], detail: str, now: float) -> str:
    """One result.

    identity: of the test. metrics: names and values; a failure's kind is the metric "failure". detail: for people.
    now: unix time of the metrics.
    """
    root = Element("OSGTestResult", {"id": printable(identity), "version": VERSION})
    result = SubElement(root, "result")
    SubElement(result, "status").text = "OK" if ok else "ERROR"
    stamp = datetime.datetime.fromtimestamp(int(now), datetime.UTC).isoformat()
    for name, value in metrics:
        metric = SubElement(result, "metric", {"name": printable(name), "ts": stamp, "uri": "local"})
        metric.text = printable(value)
    SubElement(root, "detail").text = printable(detail)
    indent(root)
    return '<?xml version="1.0"?>\n' + tostring(root, encoding="unicode") + "\n"


def printable(text: str) -> str:
    """What XML 1.0 can hold of a text: no control characters, no halves of characters."""
    kept = (c if c in "\n\t" or (c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF) else "?" for c in text)
    return "".join(kept)[:MAX_CHARACTERS]
