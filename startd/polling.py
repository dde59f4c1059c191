"""Looks at the policy expressions as time passes and usage comes in, and tells claims. Acting; the rules are in
``startd.policy`` and ``startd.claim``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio
from classad2 import ClassAd

from cedar.commands import VacateCode
from pilot.settings import Settings
from startd import claimevents as events
from startd import nodeload, policy
from startd.claim import State
from startd.claims import Claims
from startd.held import Held, Slot
from startd.nodeload import NodeLoad
from startd.openslot import Judged
from startd.policy import Asked, Facts, Policy, Wish

# The settings that are expressions of policy; RANK and START stand in every slot's ad.
_FIELDS = (
    "is_owner", "want_suspend", "suspend", "continue_", "preempt", "want_vacate", "kill", "want_hold",
    "want_hold_reason", "want_hold_subcode", "want_suspend_vanilla", "suspend_vanilla", "continue_vanilla",
    "preempt_vanilla", "want_vacate_vanilla", "kill_vanilla",
)  # fmt: skip


def policy_of(settings: Settings) -> Policy:
    """The policy that the settings describe."""
    texts = {field.rstrip("_").upper(): getattr(settings, field) for field in _FIELDS}
    return Policy({name: text for name, text in texts.items() if text})


@attrs.define
class PolicyWatch:
    """``slot_ad`` gives the present ad of a claim's slot, ``own_ad`` that of a slot that nobody has; both to keep."""

    claims: Claims
    slot_ad: Callable[[Held], ClassAd]
    own_ad: Callable[[Slot], ClassAd]
    log: logging.LoggerAdapter[logging.Logger]
    policy: Policy = attrs.field(init=False)
    load: NodeLoad = attrs.field(factory=nodeload.look)
    # names of expressions of which it was said that they are neither true nor false
    _told: set[str] = attrs.field(factory=set)

    def __attrs_post_init__(self) -> None:
        self.reconfigure()

    def reconfigure(self) -> None:
        """The settings may have changed."""
        self.policy, self._told = policy_of(self.claims.settings), set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with suppress(OSError):  # no descriptor to be had: what was seen last counts on
                self.load = nodeload.look()
            for held in list(self.claims.slots.held.values()):
                self.look(held)
            for slot in self.claims.slots.own:
                self.judge(slot)
            await trio.sleep(self.claims.settings.polling_interval)

    def judge(self, slot: Slot) -> None:
        """Whether a slot is its owner's while nobody has it."""
        if slot.claimed_whole:
            return
        before, owner = slot.open.state, False
        if self.policy.watches_owner:
            asked = self.policy.asked(self.own_ad(slot), None)
            owner = asked.truth("IS_OWNER") is True
            self._tell_unclear(asked)
        slot.tell(Judged(owner))
        if slot.open.state is not before:
            self.log.info("%s: %s -> %s", slot.name, before.value, slot.open.state.value)
            self.claims.changed()

    def look(self, held: Held) -> None:
        """What the policy wants of this claim now is done."""
        facts = self._facts(held)
        if not self._matters(facts):
            return
        asked = self._asked(held)
        wish = policy.decide(asked, facts)
        self._tell_unclear(asked)
        if wish is Wish.NOTHING:
            return
        self.log.info("%s: the policy wants: %s", held.name, wish.value)
        self.claims.handle(held, self._event(held, wish))

    def ending(self, held: Held) -> events.Ending:
        """How a claim's job ends whose retirement time is over."""
        preempted = events.Cause.PREEMPT in held.life.causes
        if not preempted and not self.policy.watches_jobs:
            return events.Ending()
        asked = self._asked(held)
        ending = policy.ending(asked, preempted=preempted)
        self._tell_unclear(asked)
        return ending

    def put_load(self, ad: ClassAd, held: Held | None = None) -> None:
        """How busy the node is, and what of it our jobs are, into the ad of a slot."""
        of_all = sum(each.cpu_load for each in self.claims.slots.held.values())
        self.load.put(ad, of_all, of_all if held is None else held.cpu_load)

    def _asked(self, held: Held) -> Asked:
        return self.policy.asked(self.slot_ad(held), held.job_ad)

    def _matters(self, facts: Facts) -> bool:
        """Most pilots leave the policy alone; then nothing is evaluated."""
        if facts.state is State.IDLE:
            return self.policy.watches_owner or facts.worklife_over
        return self.policy.watches_jobs

    def _facts(self, held: Held) -> Facts:
        claim, worklife_s = held.life, self.claims.settings.claim_worklife
        over = worklife_s >= 0 and trio.current_time() - held.made_s > worklife_s
        return Facts(
            state=claim.state,
            preempted=events.Cause.PREEMPT in claim.causes,
            by_command=claim.by_command,
            ours=claim.ours,
            killing=claim.ended is not None and claim.ended.how == "fast",
            worklife_over=over and held.clocks.activations > 0,
        )

    def _event(self, held: Held, wish: Wish) -> events.Event:
        match wish:
            case Wish.PREEMPT:
                left_s = self.claims.retirement_left_s(held)
                return events.Retire(
                    left_s, "PREEMPT is true", int(VacateCode.STARTD_PREEMPT_EXPRESSION), events.Cause.PREEMPT
                )
            case Wish.SUSPEND:
                return events.SuspendWanted()
            case Wish.CONTINUE:
                return events.ContinueWanted()
            case Wish.KILL:
                return events.KillWanted()
            case _:
                return events.Retire(0.0, wish.value, int(VacateCode.STARTD_PREEMPT_EXPRESSION))

    def _tell_unclear(self, asked: Asked) -> None:
        for name, words in asked.unclear.items():
            if name not in self._told:
                self._told.add(name)
                self.log.warning("policy: %s is %s, and counts as not given", name, words)
