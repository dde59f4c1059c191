"""Which settings a running startd takes over when they are read again. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from pilot.settings import KNOBS, Settings

PROGRAMS = "STARTD_CRON_"

# What the startd itself looks up each time. All others are known to other processes (starters, procd), to the pool
# (name, address) or to the machine (directories, sizes): they need a restart.
CHANGEABLE = frozenset(
    {
        "start",
        "default_draining_start_expr",
        "rank",
        "is_owner",
        "want_suspend",
        "suspend",
        "continue_",
        "preempt",
        "want_vacate",
        "kill",
        "want_hold",
        "want_hold_reason",
        "want_hold_subcode",
        "want_suspend_vanilla",
        "suspend_vanilla",
        "continue_vanilla",
        "preempt_vanilla",
        "want_vacate_vanilla",
        "kill_vanilla",
        "polling_interval",
        "match_timeout",
        "startd_attrs",
        "startd_slot_attrs",
        "startd_job_attrs",
        "startd_latch_exprs",
        "statistics_to_publish_list",
        "maxjobretirementtime",
        "claim_worklife",
        "check_reactivate_after_checkpoint",
        "update_interval",
        "killing_timeout",
        "machinemaxvacatetime",
        "shutdown_graceful_timeout",
        "glidein_toretire",
        "glidein_todie",
        "startd_noclaim_shutdown",
        "daemon_shutdown",
        "daemon_shutdown_fast",
        "sailplane_proxy_margin",
        "startd_cron_joblist",
        "startd_cron_max_job_load",
        "startd_cron_autopublish",
        "allow_read",
        "allow_write",
        "allow_administrator",
        "allow_daemon",
        "deny_read",
        "deny_write",
        "deny_administrator",
        "deny_daemon",
    }
)


@attrs.frozen
class Merged:
    """``settings`` to go on with; names of the knobs that changed, and of those whose change needs a restart."""

    settings: Settings
    taken: tuple[str, ...]
    left: tuple[str, ...]


def merge(now: Settings, read: Settings) -> Merged:
    """The present settings with what may change from those that were read."""
    different = [field for field in KNOBS if getattr(now, field) != getattr(read, field)]
    taken = [field for field in different if field in CHANGEABLE]
    return Merged(
        attrs.evolve(
            now,
            **{field: getattr(read, field) for field in taken},
            attributes=read.attributes,
            family={**_programs(read.family), **_others(now.family)},
        ),
        (*(KNOBS[field].name for field in taken), *_changed(_programs(now.family), _programs(read.family))),
        (
            *(KNOBS[field].name for field in different if field not in CHANGEABLE),
            *_changed(_others(now.family), _others(read.family)),
        ),
    )


def _programs(family: Mapping[str, str]) -> dict[str, str]:
    """Settings of programs beside the jobs."""
    return {name: text for name, text in family.items() if name.startswith(PROGRAMS)}


def _others(family: Mapping[str, str]) -> dict[str, str]:
    """Settings of slots and resources, which are looked at once, at the start."""
    return {name: text for name, text in family.items() if not name.startswith(PROGRAMS)}


def _changed(now: Mapping[str, str], read: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {**now, **read} if now.get(name) != read.get(name))
