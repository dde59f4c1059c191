"""Programs that the startd runs beside the jobs, and whose answers stand in the slots' ads (STARTD_CRON_*). Pure.

Knobs, modes and the form of the output are HTCondor's (execute-side reference 3.7): a program prints ``Attribute =
expression`` lines, and a line that begins with ``-`` ends a record. What it prints never hides what makes a slot's ad.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Literal

import attrs
from classad2 import ClassAd, ExprTree

from cedar.classads import evaluate, get_int, get_str, parse_expression
from cedar.errors import PeerFault
from pilot.configuration import RESERVED
from pilot.knobs import Kind, Knob, choice, expression, number, path, text, variables, yes_or_no
from pilot.quoting import check_words, split_v1, split_v2
from pilot.settings import Settings, SettingsError
from startd.metrics import Meters, Metric, metrics, names_of_jobs

FAMILY = "STARTD_CRON_"
# As stock's: a longer line is no attribute.
LINE_BYTES = 64 * 1024
# A program gone wild must not fill the ads, which go to the collector again and again.
MAX_ATTRIBUTES, MAX_RECORDS, RECORD_BYTES = 500, 64, 256 * 1024

Mode = Literal["periodic", "waitforexit", "oneshot", "ondemand"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ATTRIBUTE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]{0,200})\s*=\s*(.*\S)\s*")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
# Says which slots a record is for; no slot takes these from it.
_TARGETS = frozenset({"name", "slotname", "slotid", "slottypeid", "slotmergeconstraint"})


def _arguments() -> Kind:
    def parse(value: str) -> tuple[str, ...]:
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        words = split_v2(value[1:-1].replace('""', '"')) if quoted else split_v1(value)
        check_words(words, "the arguments")
        return tuple(words)

    return Kind("arguments", """words with blanks between them, or "'two words' three" in double quotes""", parse)


def _period() -> Kind:
    def parse(value: str) -> float:
        found = re.fullmatch(r"([0-9]{1,9})\s*([smh]?)", value.lower())
        if found is None:
            raise ValueError(value)
        return float(int(found[1]) * _UNITS[found[2]])

    return Kind("period", "a time as 30, 30s, 5m or 1h", parse)


def _slot_ids() -> Kind:
    def parse(value: str) -> frozenset[int]:
        return frozenset(map(int, value.replace(",", " ").split()))

    return Kind("slot ids", "numbers of slots", parse)


@attrs.frozen(kw_only=True)
class CronJob:
    """One program, by STARTD_CRON_<NAME>_*.

    Attributes:
        kill: one that still runs when its next turn comes is ended; else that turn is left out.
        condition: it runs only while this holds for the startd's ad; empty: always.
        slots: ids of the slots that its answers are for; none stands for all.
        load: its share of STARTD_CRON_MAX_JOB_LOAD while it runs.
        metrics: what of its answers is measured by device and job.
        reconfig: it has a SIGHUP when the settings are read again while it runs.
        reconfig_rerun: it runs once more then, if it has run.
    """

    name: str
    executable: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    cwd: str | None = None
    mode: Mode = "periodic"
    period_s: float = 0.0
    prefix: str = ""
    kill: bool = False
    condition: str = ""
    slots: frozenset[int] = frozenset()
    load: float = 0.01
    metrics: tuple[Metric, ...] = ()
    reconfig: bool = False
    reconfig_rerun: bool = False

    @property
    def measured(self) -> Mapping[str, Metric]:
        """The metrics by the attribute that the program says."""
        return {metric.attribute: metric for metric in self.metrics}


# The last part of a knob's name, its kind, and the field.
_ITEMS: Mapping[str, tuple[str, Kind]] = {
    "EXECUTABLE": ("executable", path()),
    "ARGS": ("args", _arguments()),
    "ENV": ("env", variables()),
    "CWD": ("cwd", path()),
    "MODE": ("mode", choice("periodic", "waitforexit", "oneshot", "ondemand")),
    "PERIOD": ("period_s", _period()),
    "PREFIX": ("prefix", text("[A-Za-z_][A-Za-z0-9_]{0,100}", "the beginning of an attribute's name")),
    "KILL": ("kill", yes_or_no()),
    "CONDITION": ("condition", expression()),
    "SLOTS": ("slots", _slot_ids()),
    "JOB_LOAD": ("load", number(0, 100)),
    "METRICS": ("metrics", metrics()),
    "RECONFIG": ("reconfig", yes_or_no()),
    "RECONFIG_RERUN": ("reconfig_rerun", yes_or_no()),
}


def parse(settings: Settings) -> tuple[CronJob, ...]:
    """The programs of STARTD_CRON_JOBLIST.

    Raises:
        SettingsError: one that cannot be run as it is described.
    """
    names = {name.upper(): name for name in re.split(r"[\s,]+", settings.startd_cron_joblist) if name}
    return tuple(_job(name, settings.family) for name in names.values())


def _job(name: str, family: Mapping[str, str]) -> CronJob:
    if _NAME.fullmatch(name) is None:
        raise SettingsError("STARTD_CRON_JOBLIST", name, "names of letters, digits, - and _")
    stem = f"{FAMILY}{name.upper()}_"
    found: dict[str, Any] = {}
    for item, (field, kind) in _ITEMS.items():
        said = family.get(stem + item, "")
        if said:
            found[field] = Knob(stem + item, kind, "", "", "").value(said)
    if "executable" not in found:
        raise SettingsError(stem + "EXECUTABLE", "", "the absolute path of a program")
    found["executable"] = str(found["executable"])
    found["cwd"] = str(found["cwd"]) if "cwd" in found else None
    job = CronJob(name=name, **found)
    if job.mode == "periodic" and not job.period_s:
        raise SettingsError(stem + "PERIOD", family.get(stem + "PERIOD", ""), "a time above 0, as 30s, 5m or 1h")
    if job.mode == "waitforexit" and "period_s" not in found:
        raise SettingsError(stem + "PERIOD", "", "a time, as 30s, 5m or 1h; 0: again at once")
    return job


def first_pause_s(job: CronJob, failures: int) -> float:
    """How long to wait after a run of a program in mode WaitForExit: one that fails at once must not spin."""
    return max(job.period_s, min(2.0**failures, 300.0) if failures else 0.0)


@attrs.frozen
class Record:
    """One record of a program's output. ``tag``: tells several of one program apart; ``update``: to be told at once."""

    attributes: Mapping[str, ExprTree]
    tag: str = ""
    update: bool = False


@attrs.define
class Output:
    """Reads a program's output line by line. ``refused``: why lines were left out, the first few."""

    job: CronJob
    now: int
    refused: list[str] = attrs.field(factory=list)
    _records: int = 0
    _bytes: int = 0
    _attributes: dict[str, ExprTree] = attrs.field(factory=dict)

    def line(self, line: bytes) -> Record | None:
        """One line without its end; a record if it ends one."""
        said = line[:LINE_BYTES].decode("utf-8", "replace").strip()
        if said.startswith("-"):
            return self._ended(said[1:].split())
        if not said or said.startswith("#"):
            return None
        found = _ATTRIBUTE.fullmatch(said)
        if found is None or len(line) > LINE_BYTES:
            self._refuse(f"{said[:80]!r} is not ATTRIBUTE = EXPRESSION")
            return None
        self._take(self._named(found[1]), found[2])
        return None

    def ended(self) -> Record | None:
        """The output is over: a last record needs no line that ends it."""
        return self._ended([])

    def _named(self, name: str) -> str:
        return name if name.lower() in _TARGETS else self.job.prefix + name

    def _take(self, name: str, value: str) -> None:
        lower = name.lower()
        self._bytes += len(name) + len(value)
        if lower not in _TARGETS and (lower in RESERVED or lower.startswith("_condor")):
            self._refuse(f"{name} is not for a program to say")
        elif len(self._attributes) >= MAX_ATTRIBUTES or self._bytes > RECORD_BYTES:
            self._refuse(f"more than {MAX_ATTRIBUTES} attributes or {RECORD_BYTES >> 10} KB in a record")
        else:
            try:
                self._attributes[name] = parse_expression(value)
            except PeerFault:
                self._refuse(f"{value[:80]!r} of {name} is no ClassAd expression")

    def _ended(self, words: list[str]) -> Record | None:
        attributes, self._attributes, self._bytes = self._attributes, {}, 0
        if not attributes:
            return None
        self._records += 1
        if self._records > MAX_RECORDS:
            self._refuse(f"more than {MAX_RECORDS} records")
            return None
        tag = words.pop(0)[:100] if words and ":" not in words[0] else ""
        wishes = [word.partition(":")[2].lower() for word in words if word.lower().startswith("update:")]
        attributes[f"{self.job.prefix}LastUpdate"] = ExprTree(str(self.now))
        return Record(attributes, tag, bool(wishes) and wishes[-1] not in ("false", "f", "no", "0"))

    def _refuse(self, why: str) -> None:
        if len(self.refused) < 5:
            self.refused.append(why)


@attrs.define
class Published:
    """The last record of each program and tag, in the order in which they first came, and what was measured."""

    meters: Meters = attrs.field(factory=lambda: Meters(began=int(time.time())))
    _records: dict[tuple[str, str], tuple[CronJob, Record]] = attrs.field(factory=dict)

    def put(self, job: CronJob, record: Record) -> bool:
        """Whether anything but the time is new."""
        key = job.name, record.tag
        before = self._records.get(key)
        if before is None and sum(name == job.name for name, _ in self._records) >= MAX_RECORDS:
            return False  # a tag of its own each time: those that came first stay
        self._records[key] = job, record
        if job.metrics:
            self.meters.take(job.name, record.tag, job.measured, record.attributes, int(time.time()))
        return before is None or _said(job, before[1]) != _said(job, record)

    def merge_into(self, ad: ClassAd) -> None:
        """Into the ad of a slot, what is for it."""
        found = {key: each for key, each in self._records.items() if _is_for(*each, ad)}
        for job, record in found.values():
            measured = job.measured
            for name, value in record.attributes.items():
                if name.lower() not in _TARGETS and name not in measured:
                    ad[name] = value
        self.meters.put(ad, lambda program, tag: (program, tag) in found, int(time.time()))

    def measured_of_job(self, ad: ClassAd) -> dict[str, float]:
        """What of a slot's ad was measured for its present job."""
        names = {name for job, _ in self._records.values() for name in names_of_jobs(job.metrics)}
        return {name: float(ad[name]) for name in sorted(names) if isinstance(ad.get(name), int | float)}

    def drop(self, name: str) -> None:
        """There is no such program any more."""
        for key in [key for key in self._records if key[0] == name]:
            del self._records[key]
        self.meters.drop(name)


def _said(job: CronJob, record: Record) -> dict[str, str]:
    stamp = f"{job.prefix}LastUpdate"
    return {name: str(value) for name, value in record.attributes.items() if name != stamp}


def _is_for(job: CronJob, record: Record, ad: ClassAd) -> bool:
    """As stock chooses: by a constraint, else the beginning of the slot's name, else the type's id, else the slot's."""
    slot_id = get_int(ad, "SlotID", 0)
    if job.slots and slot_id not in job.slots:
        return False
    said = {name.lower(): value for name, value in record.attributes.items() if name.lower() in _TARGETS}
    own = ClassAd()
    for name, value in said.items():
        own[name] = value
    if "slotmergeconstraint" in said:
        return evaluate(own, "slotmergeconstraint", ad) is True
    name = get_str(own, "slotname", "") or get_str(own, "name", "")
    if name:
        return get_str(ad, "Name", "").startswith(name)
    if "slottypeid" in said:
        return get_int(own, "slottypeid", -1) == get_int(ad, "SlotTypeID", 0)
    return "slotid" not in said or get_int(own, "slotid", -1) == slot_id
