"""Reads HTCondor's configuration language for `pilot.configuration`, in a process of its own.

The wheel's `param` ends its process on a malformed file or number, keeps what it read for
ever, and never returns from a macro that refers to itself. A short-lived process makes these an
answer that the caller can put into words. This file is run as a program and imports nothing
of ours; it decides nothing about the values.

Standard input: JSON {"path": [...], "names": [...], "families": [prefix, ...], "subsystem": text, "cpu_s": number};
output: JSON {"values": {name: text}, "present": [...], "attributes": {name: text}, "family": {name: text},
"spelled": {name: name}}.
The environment has CONDOR_CONFIG and `_CONDOR_*`.
"""

import json
import resource
import sys
from typing import Any

# A knob that HTCondor knows is converted by `param`, or ends the process when it cannot be;
# read through an alias that HTCondor does not know, each value arrives as its text.
ALIAS = "SAILPLANE_TEXT_OF_"
# What a daemon of another local name has of its own goes before.
LOCAL_ALIAS = "SAILPLANE_LOCAL_TEXT_OF_"


def read(param: Any, names: list[str]) -> dict[str, str]:
    """The text of each knob; blank and unset are both the empty text."""

    def text(name: str) -> str:
        return str(param.get(LOCAL_ALIAS + name, "")).strip() or str(param.get(ALIAS + name, "")).strip()

    return {name: text(name) for name in names}


def limit_cpu(seconds: int) -> None:
    """SIGXCPU ends this process after so much CPU time, without a core; a batch system's limit may be lower."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard == resource.RLIM_INFINITY else min(seconds, hard), hard))


def main() -> None:
    """One answer to one request, then the end."""
    request = json.load(sys.stdin)
    limit_cpu(request["cpu_s"])
    sys.path[:] = request["path"]
    import htcondor2

    if request["subsystem"]:
        htcondor2.set_subsystem(request["subsystem"])
        # A line like STARTD.X = $(X) more is put together when it is read, by a reader that knows who it is.
        htcondor2.reload_config()
    param: Any = htcondor2.param
    values = read(param, request["names"])
    spelled = {key.upper(): key for key in param if not key.upper().startswith((ALIAS, LOCAL_ALIAS))}
    present = list(spelled)
    # STARTD_ATTRS names settings that are no knobs.
    wanted = values.get("STARTD_ATTRS", "").replace(",", " ").split()
    attributes = {name: str(param.get(name, "")).strip() for name in wanted}
    # STARTD_LATCH_EXPRS names such settings, or attributes that are there anyway.
    latched = values.get("STARTD_LATCH_EXPRS", "").replace(",", " ").split()
    attributes |= {name: value for name in latched if (value := str(param.get(name, "")).strip())}
    families = tuple(request["families"])
    family = {name: str(param.get(name, "")).strip() for name in present if name.startswith(families)}
    spelled = {name: spelled[name] for name in family}
    answer = {"values": values, "present": present, "attributes": attributes, "family": family, "spelled": spelled}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
