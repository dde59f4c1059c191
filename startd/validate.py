"""The identity switch is tried before anything is advertised: a pilot that cannot run jobs must say so at once."""

from __future__ import annotations

import os
import shutil

import attrs
import trio

from pilot.settings import Settings
from pilot.switch import (
    Call,
    CannotCall,
    Denied,
    Exited,
    Misused,
    Outcome,
    Switch,
    Unavailable,
    wrapper_argv,
)

# A command that exists everywhere; resolved, since glexec refuses a symbolic link.
_TRUE = os.path.realpath(shutil.which("true") or "/bin/true")

# What jobwrapper exits with when it is asked for nothing.
_WRAPPER_USAGE = 100


class Unusable(Exception):
    """The switch cannot be used at all; the text names the cause and what to do. ``passing``: it may work later."""

    def __init__(self, text: str, *, passing: bool) -> None:
        super().__init__(text)
        self.passing = passing


@attrs.frozen
class Validated:
    """``words`` for log and people; ``pilot_mapped`` is False where the site maps users, but not the pilot."""

    words: str
    pilot_mapped: bool


async def validate(settings: Settings, switch: Switch) -> Validated:
    """One call, with the pilot's own proxy where the switch wants one, as glidein scripts do.

    Raises:
        Unusable: no tool, wrong use, site down.
    """
    if not switch.isolates:
        return Validated("identity switch 'none': jobs run at this account, nothing is isolated", pilot_mapped=True)
    if switch.name == "userns":
        return judge_userns(await try_wrapper(settings, switch))
    if not os.access(settings.glexec, os.X_OK):
        raise Unusable(
            f"GLEXEC = {settings.glexec} is no executable file: name the site's glexec, or set SAILPLANE_SWITCH = none"
            " to run every job at this account",
            passing=False,
        )
    if settings.sailplane_pilot_proxy is None:
        return Validated("no pilot proxy: the switch is first used with a user's own", pilot_mapped=False)
    return judge(await _call(settings, switch))


def judge(outcome: Outcome) -> Validated:
    """What the answer to the pilot's own call means. A refusal is no fault: many sites do not map pilots."""
    match outcome:
        case Exited(status=0):
            return Validated("the identity switch works with the pilot's proxy", pilot_mapped=True)
        case Denied(text=text):
            return Validated(f"the site does not map the pilot itself ({text}); users may still be mapped", False)
        case Unavailable(text=text):
            raise Unusable(f"the identity switch is not available: {text}. Try again later.", passing=True)
        case Misused(text=text):
            raise Unusable(
                f"the identity switch refused the pilot's proxy: {text}."
                " Check SAILPLANE_PILOT_PROXY: own file, mode 0600, not expired, with its key.",
                passing=False,
            )
        case _:
            raise Unusable(f"the identity switch answered in an unknown way: {outcome}", passing=False)


def judge_userns(outcome: Outcome) -> Validated:
    """What it means how a wrapper ended that was asked for nothing."""
    match outcome:
        case Exited(status=status) if status == _WRAPPER_USAGE:
            return Validated("identity switch 'userns': each job runs at a sub-uid of this account's", True)
        case Unavailable(text=text):
            raise Unusable(f"the identity switch 'userns' is not available now: {text}", passing=True)
        case Misused(text=text):
            raise Unusable(
                f"the identity switch 'userns' cannot work here: {text}."
                " Or set SAILPLANE_SWITCH = none to run every job at this account",
                passing=False,
            )
        case _:
            raise Unusable(
                f"a sub-uid of this account cannot run the wrapper in SAILPLANE_WRAPPER_DIR ({outcome}):"
                " every directory above it must let other accounts pass (o+x), and its files be readable",
                passing=False,
            )


async def try_wrapper(settings: Settings, switch: Switch) -> Outcome:
    """A call of the wrapper with no verb: it says how to use it, and that it can be run."""
    try:
        return await _call(settings, switch, wrapper_argv(settings, "")[:-1])
    except CannotCall as refusal:
        return refusal.outcome


async def _call(settings: Settings, switch: Switch, argv: tuple[str, ...] = (_TRUE,)) -> Outcome:
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        running = await switch.start(Call(argv, "sailplane-validation", None, stdin=nothing))
        try:
            with trio.move_on_after(settings.sailplane_switch_deadline):
                return await running.wait()
            await running.end(1.0)
            return Unavailable(f"no answer within {settings.sailplane_switch_deadline:.0f} s")
        finally:
            running.close()
    finally:
        os.close(nothing)
