"""A validation's result in the formats that others read: JSON, and the OSGTestResult XML of glidein scripts. Pure."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from typing import Any

import attrs

from pilot.findings import Validation

VERSION = "4.3.1"
# What XML 1.0 cannot say at all, however it is escaped.
_UNSAYABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(report: Validation) -> dict[str, Any]:
    """For `--json`: everything."""
    return {
        "switch": report.switch,
        "usable": not report.failures,
        "passing": bool(report.failures) and report.passing,
        "pilot_mapped": report.pilot_mapped,
        "linger": report.linger,
        "degraded": list(report.degraded),
        "findings": [attrs.asdict(finding) for finding in report.findings],
    }


def as_xml(report: Validation, *, test_id: str, cwd: str) -> str:
    """OSGTestResult 4.3.1: the status agrees with `sailplane validate`'s exit code."""
    root = ET.Element("OSGTestResult", id=_clean(test_id), version=VERSION)
    environment = ET.SubElement(root, "operatingenvironment")
    ET.SubElement(environment, "env", name="cwd").text = _clean(cwd)
    test = ET.SubElement(root, "test")
    ET.SubElement(test, "cmd").text = _clean("; ".join(report.commands))
    ET.SubElement(test, "tStart").text = _time(report.began_at)
    ET.SubElement(test, "tEnd").text = _time(report.ended_at)
    result = ET.SubElement(root, "result")
    ET.SubElement(result, "status").text = "ERROR" if report.failures else "OK"
    when = _time(report.ended_at)
    for failure in report.failures:
        _metric(result, "failure", when, failure.kind or "Unknown")
        _metric(result, failure.check, when, failure.cause)
    _metric(result, "switch", when, report.switch)
    _metric(result, "degraded", when, ",".join(report.degraded))
    detail = "\n".join(f"{each.check}: {each.status}: {each.text}" for each in report.findings)
    ET.SubElement(root, "detail").text = _clean(detail)
    ET.indent(root)
    return '<?xml version="1.0"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _metric(result: ET.Element, name: str, when: str, value: str) -> None:
    ET.SubElement(result, "metric", name=_clean(name), ts=when, uri="local").text = _clean(value)


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(at))


def _clean(text: str) -> str:
    return _UNSAYABLE.sub("?", text)
