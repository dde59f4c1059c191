"""Messages as what families are made of, and back. Pure."""

from procd.account import Cpu, Totals
from procd.families import Family
from procd.messages import Identity, Memory, Usage
from procd.proc import TICKS_PER_S
from procd.process import ProcessId
from procd.surroundings import Surroundings


def process_id(identity: Identity) -> ProcessId:
    """A process as families have it."""
    return ProcessId(identity.pid, identity.start_ticks)


def identities(ids: tuple[ProcessId, ...]) -> tuple[Identity, ...]:
    """Processes as messages have them."""
    return tuple(Identity(*each) for each in ids)


def usage_of(totals: Totals) -> Usage:
    """What an account has come to, in seconds."""
    return Usage(
        user_s=totals.cpu.user / TICKS_PER_S,
        system_s=totals.cpu.system / TICKS_PER_S,
        rss_kb=totals.rss_kb,
        rss_peak_kb=totals.rss_peak_kb,
        image_kb=totals.image_peak_kb,
        processes=totals.processes,
        processes_seen=totals.seen,
        dead_user_s=totals.dead.user / TICKS_PER_S,
        dead_system_s=totals.dead.system / TICKS_PER_S,
    )


def _totals(usage: Usage) -> Totals:
    return Totals(
        cpu=Cpu(round(usage.user_s * TICKS_PER_S), round(usage.system_s * TICKS_PER_S)),
        dead=Cpu(round(usage.dead_user_s * TICKS_PER_S), round(usage.dead_system_s * TICKS_PER_S)),
        rss_peak_kb=usage.rss_peak_kb,
        image_peak_kb=usage.image_kb,
        seen=usage.processes_seen,
    )


def memory_of(family: Family) -> Memory:
    """What another procd will have to be told of a family."""
    around = family.around
    return Memory(
        uid=around.uid,
        chain=identities(around.chain),
        exempt=identities(around.exempt),
        ancestors=identities(around.ancestors),
        hidden=around.hidden,
        usage=usage_of(family.account.totals),
    )


def surroundings(memory: Memory) -> Surroundings:
    """What an earlier procd knew of a family."""
    return Surroundings(
        uid=memory.uid,
        chain=tuple(map(process_id, memory.chain)),
        exempt=tuple(map(process_id, memory.exempt)),
        ancestors=tuple(map(process_id, memory.ancestors)),
        totals=_totals(memory.usage),
        hidden=memory.hidden,
    )
