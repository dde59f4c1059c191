"""Where a site's glexec is: the knob's kind, and the places where glidein scripts look, in their order."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pilot.knobs import Kind, path

_WORDS = ("auto", "osg", "glite")


def tool() -> Kind:
    """NONE, a word for where it is looked for, or a path; what is not found is None as well."""

    def parse(value: str) -> Path | None:
        word = value.lower()
        if word == "none":
            return None
        if word in _WORDS:
            places = [place for name, place in _places() if word in (name, "auto")]
            return next((place for place in places if os.access(place, os.X_OK)), None)
        found: Path = path().parse(value)
        return found

    return Kind("tool", "an absolute path, NONE, auto, OSG or glite", parse)


def _places() -> list[tuple[str, Path]]:
    """Empty variables exist in the wild and count as unset."""
    places: list[tuple[str, Path]] = []
    for name, variable, below in (
        ("osg", "OSG_GLEXEC_LOCATION", ""),
        ("glite", "GLEXEC_LOCATION", "sbin/glexec"),
        ("glite", "GLITE_LOCATION", "sbin/glexec"),
    ):
        if os.environ.get(variable, "").startswith("/"):
            places.append((name, Path(os.environ[variable], below)))
    places += [("glite", Path("/opt/glite/sbin/glexec")), ("osg", Path("/usr/sbin/glexec"))]
    found = shutil.which("glexec")
    return places + ([("auto", Path(found))] if found else [])
