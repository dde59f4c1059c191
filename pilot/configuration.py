"""From a configuration to the frozen `Settings`: the only reader of configuration and of the environment's knobs.

HTCondor's configuration language. A value is read once, checked, and frozen; nothing else in Sailplane reads a
configuration file or a `_CONDOR_*` variable. The node's own HTCondor configuration is never read: CONDOR_CONFIG is
always set here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pilot.knobs import Knob, SettingsError, expression
from pilot.settings import KNOBS, Settings, wrapper_dir
from pilot.settingsreader import MasterDefaults, read

# Names the file of settings that a startd made of its script's glidein_config; its other processes read it, too.
GLIDEIN_SETTINGS = "SAILPLANE_GLIDEIN_SETTINGS"
# Set by a startd under a condor_master, for itself and its other processes: the name in the master's DAEMON_LIST.
# The master's configuration is read as stock's startd reads it: STARTD.KNOB and NAME.KNOB before KNOB.
UNDER_MASTER = "SAILPLANE_UNDER_MASTER"
# Settings whose names the administrator makes up, HTCondor's way: a part of the name is a slot type's number, the name
# of a resource or of a cron job. Who uses them checks them (`Settings.family`).
FAMILIES = (
    "STARTD_CRON_",
    "SLOT_TYPE_",
    "NUM_SLOTS_TYPE_",
    "MACHINE_RESOURCE_",
    "OFFLINE_MACHINE_RESOURCE_",
    "ENVIRONMENT_FOR_",
    "ENVIRONMENT_VALUE_FOR_",
)


def load(config: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings from a configuration file and `_CONDOR_*` variables; defaults for the rest.

    Blocks for about 50 ms (a process of its own reads the file). Also points this process's
    CONDOR_CONFIG to nothing, so that the wheel never finds the node's configuration.

    Args:
        config: the file; None takes SAILPLANE_CONFIG of the environment, if any.
        environ: the environment; None is the process's own.

    Raises:
        SettingsError: a value that cannot be, a file that cannot be read. Names knob, value
            and what is allowed.
    """
    os.environ["CONDOR_CONFIG"] = os.devnull
    environment = dict(os.environ if environ is None else environ)
    master = _under_master(environment)
    if config is None and environment.get("SAILPLANE_CONFIG"):
        config = Path(environment["SAILPLANE_CONFIG"])
    glidein = Path(environment[GLIDEIN_SETTINGS]) if environment.get(GLIDEIN_SETTINGS) else None
    file = None if config is None else config.absolute()
    texts = read(KNOBS.values(), FAMILIES, glidein, file, environment, master)
    return from_values(
        texts.values,
        source=config,
        warnings=_unknown(texts.present),
        attributes=texts.attributes,
        family=texts.family,
        spelled=texts.spelled,
    )


# Where they differ from ours, the defaults of a daemon that a condor_master starts: HTCondor's own, and a place that
# its configuration does not use yet.
_MASTER_DEFAULTS = {
    "COLLECTOR_HOST": "$(CONDOR_HOST)",
    "NETWORK_INTERFACE": "*",
    "SEC_TOKEN_DIRECTORY": "$(SEC_TOKEN_SYSTEM_DIRECTORY)",
    "SHARED_PORT_DAEMON_AD_FILE": "$(LOCK)/shared_port_ad",
    "SAILPLANE_RUN_DIR": "$(LOCK)/sailplane_",
    # Configurations add to it: $(FILETRANSFER_PLUGINS) is what there is without them.
    "FILETRANSFER_PLUGINS": str(wrapper_dir() / "curl_plugin.py"),
}


def _under_master(environment: Mapping[str, str]) -> MasterDefaults | None:
    name = environment.get(UNDER_MASTER, "")
    if not name:
        return None
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) is None:
        raise SettingsError("-local-name", name, "letters, digits and _.-")
    own = {"SAILPLANE_RUN_DIR": _MASTER_DEFAULTS["SAILPLANE_RUN_DIR"] + name.lower()}
    return MasterDefaults(name, _MASTER_DEFAULTS | own)


def from_values(
    values: Mapping[str, str],
    *,
    source: Path | None,
    warnings: tuple[str, ...] = (),
    attributes: Mapping[str, str] | None = None,
    family: Mapping[str, str] | None = None,
    spelled: Mapping[str, str] | None = None,
) -> Settings:
    """The settings from the knobs' texts by knob name; a blank text stands for the default."""
    typed: dict[str, Any] = {"attributes": _expressions(attributes or {})}
    for field, row in KNOBS.items():
        given = values.get(row.name, "")
        if given:
            typed[field] = row.value(given)
    return Settings(**typed, family=family or {}, spelled=spelled or {}, source=source, warnings=warnings)


def _expressions(attributes: Mapping[str, str]) -> dict[str, str]:
    """STARTD_ATTRS, checked: an ad's own attributes are not theirs to set. Glidein pools name START: it is there."""
    attributes = {name: value for name, value in attributes.items() if name.lower() not in ("start", "rank")}
    for name, value in attributes.items():
        if name.lower() in RESERVED or name.lower().startswith("_condor"):
            raise SettingsError("STARTD_ATTRS", name, "a name that no slot's ad has by itself")
        Knob(name, expression(), "", "", "").value(value or "undefined")
    return {name: value or "undefined" for name, value in attributes.items()}


# What makes a slot's ad: who it is, what it has, whom it takes, and what opens its claim.
RESERVED = frozenset({
    "name", "machine", "myaddress", "mytype", "targettype", "startdipaddr", "condorversion", "condorplatform",
    "slotid", "dslotid", "slottype", "slottypeid", "partitionableslot", "dynamicslot", "cpus", "memory",
    "disk", "totalcpus", "totalmemory", "totaldisk", "state", "activity", "start", "requirements",
    "withinresourcelimits", "rank", "currentrank", "claimid", "capability", "publicclaimid", "childclaimids",
    "claimidlist", "remoteuser", "remoteowner", "jobid",
})  # fmt: skip


def _unknown(present: Iterable[str]) -> tuple[str, ...]:
    """One warning for each SAILPLANE_ name that is no knob, with the nearest that is."""
    names = [row.name for row in KNOBS.values()]
    warnings = []
    for name in sorted(set(present) - set(names)):
        if name.startswith("SAILPLANE_"):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; the nearest known name is {near[0]}" if near else ""
            warnings.append(f"unknown knob {name}{hint}; ignoring it")
    return tuple(warnings)
