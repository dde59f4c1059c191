"""What benches of a site have in common: whether they can run, the pilot's credential, calls of the site's glexec."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from demo.grid import write_private
from demo.site import Site

# The node's own, as the wrapper is run by; not a link, which a call of the switch would have to follow.
PYTHON = os.path.realpath("/usr/bin/python3")
SHELL = os.path.realpath("/bin/sh")
# Any priority of the real-time class goes before ordinary work; a low one leaves room for the kernel's own.
_PRIORITY = 5


def why_not(*tools: str) -> str:
    """Why a bench that makes a whole site and needs these tools cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root: it makes accounts and installs a glexec behind sudo"
    missing = [tool for tool in ("sudo", *tools) if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def credential(site: Site, name: str) -> Path:
    """Alice's proxy as a file of the pilot's, as a starter has it."""
    pilot = site.accounts["pilot"]
    pem = site.users["alice"].proxy.read_bytes()
    return write_private(site.layout.pilot / f"{name}.proxy", pem, owner=(pilot.uid, pilot.gid))


def call_environment(site: Site, proxy: Path, call_id: str) -> dict[str, str]:
    """The pilot's environment for a call of glexec that leaves no copy of the proxy; `call_id` is for the root log."""
    return site.environment(site.layout.pilot) | {
        "GLEXEC_CLIENT_CERT": str(proxy),
        "GLEXEC_TARGET_PROXY": "/dev/null",
        "GLEXEC_ID": call_id,
    }


def go_first(pid: int) -> None:
    """Other work of the machine waits for this process (0: ours) and its children, where the kernel lets us."""
    with suppress(PermissionError):
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(_PRIORITY))
