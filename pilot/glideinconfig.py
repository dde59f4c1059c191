"""A glidein script's ``glidein_config``, turned into settings in HTCondor's language. Pure.

The file has one ``KEY value`` a line. A second file that it names, CONDOR_VARS_FILE, says which of its keys are
settings of the daemons, attributes of the slots, or variables of the jobs:

    name  S|I|C  default|-  condor-name|+  required Y|N  exported Y|N  job-variable|+|@|-

What stands in either file is data: a value becomes one setting's text and can start no other.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import attrs

# Both files are some kilobytes; what is larger was not written by a glidein script.
MAX_BYTES = 1 << 20
MAX_LINES = 10_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)(?:[ \t]+(.*))?")
# glideinWMS allows this much between the end that it plans and the batch system's own.
_SLACK_S = 370
_DEFAULTS_S = {"retire": 21_600, "job_max": 129_600, "graceful": 120}
_SHORTEST_RETIRE_S = 600

# Keys that are settings of ours under another name, whether a condor_vars file lists them or not.
RENAMED = {
    "X509_USER_PROXY": "SAILPLANE_PILOT_PROXY",
    "X509_CERT_DIR": "SAILPLANE_CERTIFICATES_DIR",
    "GLIDEIN_Collector": "COLLECTOR_HOST",
    "GLIDEIN_CPUS": "NUM_CPUS",
    "GLIDEIN_MaxMemMBs": "MEMORY",
    "GLIDEIN_Max_Idle": "STARTD_NOCLAIM_SHUTDOWN",
    "GLIDEIN_Graceful_Shutdown": "SHUTDOWN_GRACEFUL_TIMEOUT",
}
# Values of these that stand for "the script does not say".
_UNSAID = frozenset({"", "-", "auto", "node", "slot", "estimate"})
# What every pool expects of a glidein's slots.
EXPORTED = (
    "GLIDEIN_Site", "GLIDEIN_Factory", "GLIDEIN_Name", "GLIDEIN_Entry_Name", "GLIDEIN_ClusterId", "GLIDEIN_ProcId",
    "GLIDEIN_Schedd", "GLIDECLIENT_Name", "GLIDECLIENT_Group",
)  # fmt: skip


class BadGlideinConfig(Exception):
    """A file that cannot be used; the text names file line, value, and what is allowed."""


@attrs.frozen
class Variable:
    """One line of condor_vars."""

    name: str
    kind: str
    default: str | None
    setting: str
    required: bool
    exported: bool
    job_variable: str | None


@attrs.frozen
class Derived:
    """What follows from both files: settings by name, attributes as ClassAd expressions, variables of every job."""

    settings: Mapping[str, str]
    attributes: Mapping[str, str]
    job_environment: Mapping[str, str]


def parse_values(text: str) -> dict[str, str]:
    """``KEY value`` lines; the last of one key counts, as for the scripts that append.

    Raises:
        BadGlideinConfig: too long, or a line of another form.
    """
    values: dict[str, str] = {}
    for number, line in _lines(text, "glidein_config"):
        found = _LINE.fullmatch(line)
        if found is None:
            raise BadGlideinConfig(f"glidein_config, line {number}: {line[:80]!r} is not 'KEY value'")
        values[found[1]] = (found[2] or "").strip()
    return values


def parse_variables(text: str) -> list[Variable]:
    """The lines of condor_vars; `#` begins a comment.

    Raises:
        BadGlideinConfig: a line without its seven words, or with a word that means nothing.
    """
    found = []
    for number, line in _lines(text, "condor_vars"):
        if line.startswith("#"):
            continue
        words = line.split()
        where = f"condor_vars, line {number}"
        if len(words) != 7:
            raise BadGlideinConfig(
                f"{where}: {len(words)} words; allowed are seven (name kind default setting Y|N Y|N variable)"
            )
        name, kind, default, setting, required, exported, variable = words
        if kind not in ("S", "I", "C") or not {required, exported} <= {"Y", "N"}:
            raise BadGlideinConfig(f"{where}: {kind} {required} {exported}; allowed are S|I|C, Y|N and Y|N")
        setting = name if setting == "+" else setting
        job_variable = {"-": None, "+": name, "@": setting}.get(variable, variable)
        for word in (name, setting, job_variable or "X"):
            if _NAME.fullmatch(word) is None:
                raise BadGlideinConfig(f"{where}: {word[:80]!r} is no name; allowed are letters, digits and _")
        given = None if default == "-" else default
        found.append(Variable(name, kind, given, setting, required == "Y", exported == "Y", job_variable))
    return found


def _lines(text: str, what: str) -> list[tuple[int, str]]:
    if len(text) > MAX_BYTES or text.count("\n") > MAX_LINES:
        raise BadGlideinConfig(f"{what}: larger than {MAX_BYTES} bytes or {MAX_LINES} lines")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def derive(
    values: Mapping[str, str], variables: list[Variable], plain: Container[str], *, now: int, dice: float
) -> Derived:
    """Settings, attributes and job variables.

    plain: settings, in upper case, that are no ClassAd expressions, so that text in them stands without quotes.
    now: unix time of the pilot's start. dice: 0 to 1, for the spread of the pilot's retirement.

    Raises:
        BadGlideinConfig: a required key is missing, or the pilot would be too short-lived to take a job.
    """
    settings = {ours: values[key] for key, ours in RENAMED.items() if values.get(key, "").lower() not in _UNSAID}
    attributes = {key: quoted(values[key]) for key in EXPORTED if values.get(key)}
    environment: dict[str, str] = {}
    for variable in variables:
        value = values.get(variable.name, variable.default)
        if value is None:
            if variable.required:
                raise BadGlideinConfig(f"glidein_config has no {variable.name}, which condor_vars requires")
            continue
        is_text = variable.kind == "S" and variable.setting.upper() not in plain
        settings[variable.setting] = quoted(value) if is_text else value
        if variable.exported:
            attributes[variable.setting] = quoted(value) if variable.kind == "S" else value
        if variable.job_variable is not None:
            environment[variable.job_variable] = value
    settings.update(_life(values, now, dice))
    return Derived(settings, attributes, environment)


def _life(values: Mapping[str, str], now: int, dice: float) -> dict[str, str]:
    """GLIDEIN_ToRetire and GLIDEIN_ToDie by glideinWMS's rules; what the file says of them itself wins."""
    if "GLIDEIN_ToDie" in values or not {"GLIDEIN_Max_Walltime", "GLIDEIN_Retire_Time"} & values.keys():
        return {key: values[key] for key in ("GLIDEIN_ToRetire", "GLIDEIN_ToDie") if key in values}
    graceful_s = _seconds(values, "GLIDEIN_Graceful_Shutdown", "graceful")
    job_max_s = _seconds(values, "GLIDEIN_Job_Max_Time", "job_max")
    walltime_s = _seconds(values, "GLIDEIN_Max_Walltime", "") if "GLIDEIN_Max_Walltime" in values else None
    if walltime_s is not None:
        die_s = walltime_s - _SLACK_S - graceful_s
        retire_s = die_s - min(job_max_s, max(0, die_s - _SHORTEST_RETIRE_S))
    else:
        retire_s = _seconds(values, "GLIDEIN_Retire_Time", "retire")
        die_s = retire_s + job_max_s
    spread_s = retire_s // 10
    if "GLIDEIN_Retire_Time_Spread" in values:
        spread_s = _seconds(values, "GLIDEIN_Retire_Time_Spread", "")
    earlier_s = int(min(spread_s, max(0, retire_s - _SHORTEST_RETIRE_S)) * dice)
    if retire_s < _SHORTEST_RETIRE_S:
        raise BadGlideinConfig(
            f"the pilot could take jobs for {retire_s} s only; allowed are {_SHORTEST_RETIRE_S} s or more:"
            " give it a longer GLIDEIN_Max_Walltime or GLIDEIN_Retire_Time"
        )
    return {"GLIDEIN_ToRetire": str(now + retire_s - earlier_s), "GLIDEIN_ToDie": str(now + die_s - earlier_s)}


def _seconds(values: Mapping[str, str], key: str, default: str) -> int:
    text = values.get(key, "")
    if not text and default:
        return _DEFAULTS_S[default]
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise BadGlideinConfig(f"glidein_config has {key} = {text[:80]!r}; allowed is a number of seconds")
    return int(text)


def configuration(derived: Derived) -> list[str]:
    """Lines of HTCondor's configuration language."""
    lines = [f"{name} = {_literal(value)}" for name, value in derived.settings.items()]
    more = {name: value for name, value in derived.attributes.items() if name not in derived.settings}
    lines += [f"{name} = {_literal(value)}" for name, value in more.items()]
    if derived.attributes:
        lines.append("STARTD_ATTRS = $(STARTD_ATTRS) " + " ".join(derived.attributes))
    if derived.job_environment:
        words = " ".join(f"{name}={_single_quoted(value)}" for name, value in derived.job_environment.items())
        lines.append(f'STARTER_JOB_ENVIRONMENT = "{_literal(words).replace(chr(34), chr(34) * 2)}"')
    return lines


def quoted(text: str) -> str:
    """A ClassAd string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _single_quoted(text: str) -> str:
    """One value of an environment in HTCondor's V2 syntax."""
    return "'" + text.replace("'", "''") + "'"


def _literal(text: str) -> str:
    """A value that is no macro, and no more than one line."""
    plain = "".join(c if c.isprintable() else "?" for c in text).replace("$", "$(DOLLAR)")
    # A backslash at a line's end would join the next line to it; a macro without a value stands between.
    return plain + "$(SAILPLANE_NOTHING)" if plain.endswith("\\") else plain
