"""Whether a site of an ordinary account can give each job a sub-uid, tried once with the real switch."""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs
import trio

from demo import interrupts, runtime
from pilot.settings import Settings
from pilot.userns import UsernsSwitch
from startd.validate import Unusable, validate


@attrs.frozen
class Found:
    """`wrapper` is the directory of the wrapper that sub-uids can run; None: they cannot be used, and `why`."""

    wrapper: Path | None
    why: str = ""


def look(copy: Path) -> Found:
    """Try the switch; where the checkout is closed to other accounts, with a copy of the wrapper in `copy`."""
    wrapper = runtime.ROOT / "jobwrapper"
    if not (runtime.traversable(wrapper / "x") and runtime.readable(wrapper)):
        shutil.copytree(wrapper, copy, ignore=shutil.ignore_patterns("__pycache__"))
        runtime.open_up(copy)
        wrapper = copy
    # The site's own execute directory is not there yet; this one other accounts reach for certain.
    settings = attrs.evolve(Settings(), sailplane_wrapper_dir=wrapper, execute=wrapper)
    try:
        with interrupts.held():
            trio.run(validate, settings, UsernsSwitch())
    except Unusable as unusable:
        return Found(None, str(unusable))
    return Found(wrapper)
