"""Whole stories of the life: facts at any moment, steps that end in any way; what must hold in all of them."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from starter.events import (
    Begin,
    CheckpointReached,
    CheckpointSent,
    Cleaned,
    ContinueAsked,
    CredentialStored,
    DeactivateAsked,
    DeclareBroken,
    Disconnected,
    Event,
    Exit,
    FamilyStopped,
    IdentityChanged,
    JobEnded,
    JobKnown,
    LeaveToJanitor,
    LimitExceeded,
    ProxyEnding,
    Reconnected,
    Reported,
    ShadowLost,
    StagedIn,
    StagedOut,
    StartdLost,
    Started,
    Step,
    StepFailed,
    SuspendAsked,
)
from starter.life import Life, State
from starter.verdict import Abandoned, Exited, Hold, Requeue, Verdict

HOLD, AGAIN = Hold(12, 2, "failed"), Requeue(6, "broke down")
# How each step may end; the first is the good end.
ENDS: dict[Step, tuple[Event, ...]] = {
    Step.ASK: (JobKnown(True, False), JobKnown(False, True), JobKnown(False, False, refusal=HOLD)),
    Step.FETCH_CREDENTIAL: (CredentialStored(), StepFailed(HOLD, sandbox=False)),
    Step.STAGE_IN: (StagedIn(), StepFailed(HOLD, sandbox=True), StepFailed(AGAIN, sandbox=True)),
    Step.LAUNCH: (Started(), StepFailed(HOLD, sandbox=True), StepFailed(AGAIN, sandbox=True)),
    Step.STOP_SOFTLY: (FamilyStopped(()), FamilyStopped((7,))),
    Step.STOP_HARD: (FamilyStopped(()), FamilyStopped((7,))),
    Step.CHECKPOINT: (CheckpointSent(), StepFailed(HOLD, sandbox=True)),
    Step.STAGE_OUT: (
        StagedOut(""), StagedOut("left"), StepFailed(AGAIN, sandbox=True), StepFailed(HOLD, sandbox=False)
    ),
    Step.CLEAN: (Cleaned(""), Cleaned("left")),
    Step.REPORT: (Reported(),),
}  # fmt: skip
NEED_THE_SHADOW = {Step.CHECKPOINT, Step.STAGE_OUT, Step.REPORT}
FACTS: tuple[Event, ...] = (
    Disconnected("cut"), Reconnected(), ShadowLost("gone"), StartdLost(), ProxyEnding("soon"), SuspendAsked(),
    ContinueAsked(), IdentityChanged(HOLD), IdentityChanged(AGAIN), JobEnded(0, True), JobEnded(0, True, HOLD),
    CheckpointReached(JobEnded(85 << 8, True)), LimitExceeded(HOLD, soft=True), LimitExceeded(HOLD, soft=False),
    *(DeactivateAsked("rm", 1, soft=soft, output=output) for soft in (True, False) for output in (True, False)),
)  # fmt: skip


@attrs.define
class Story:
    """A life, and what an acting part would know of the world."""

    life: Life = attrs.field(factory=Life)
    step: Step | None = Step.ASK
    runs: bool = False  # the job, or what it left: until a stop has been proved
    exists: bool = False  # its first process
    sandbox: bool = False
    reported: Verdict | None = None
    output_sent: int = 0
    exits: int = 0

    def possible(self, fact: Event) -> bool:
        match fact:
            case JobEnded() | CheckpointReached():
                return self.exists
            case Disconnected():
                return not self.life.disconnected
            case Reconnected():
                return self.life.disconnected and not isinstance(self.life.verdict, Abandoned)
        return True

    def end_step(self, event: Event) -> None:
        ended, self.step = self.step, None
        match event:
            case StepFailed(sandbox=False) | StagedOut(left="") | Cleaned(left=""):
                self.sandbox = False
            case Started():
                self.exists = True
            case FamilyStopped(survivors=()):
                self.runs = self.exists = False
        if ended is Step.STAGE_OUT and isinstance(event, StagedOut):
            self.output_sent += 1
        self.handle(event)

    def handle(self, event: Event) -> None:
        if isinstance(event, JobEnded | CheckpointReached):
            self.exists = False
        commands = self.life.handle(event, now_s=0.0)
        if isinstance(event, StagedOut | Cleaned) and event.left:
            assert LeaveToJanitor("left") in commands
            self.sandbox = False  # the janitor's
        if isinstance(event, FamilyStopped) and event.survivors:
            assert any(isinstance(command, DeclareBroken) for command in commands)
            self.runs = False  # told of, and nothing more can be done
        for command in commands:
            if isinstance(command, Begin):
                self.begin(command.step)
            elif isinstance(command, Exit):
                self.exit()
        self.check()

    def begin(self, step: Step) -> None:
        assert self.exits == 0, "a step after the end"
        if step in (Step.CLEAN, Step.STAGE_OUT, Step.CHECKPOINT, Step.REPORT, Step.LAUNCH):
            assert not self.runs, f"{step} while processes of the job may run"
        if step is Step.STAGE_OUT:
            assert self.output_sent == 0, "output a second time"
            assert self.sandbox
        if step is Step.LAUNCH:
            assert self.life.verdict is None, "a launch of a job whose end was decided"
            self.runs = True
        if step is Step.STAGE_IN:
            self.sandbox = True
        if step is Step.REPORT:
            self.reported = self.reported or self.life.verdict
        self.step = step

    def exit(self) -> None:
        self.exits += 1
        self.step = None
        assert not self.runs
        assert not self.sandbox, "an end with a sandbox that nobody was told of"
        assert self.life.verdict is not None

    def check(self) -> None:
        life = self.life
        if self.reported is not None:
            assert life.verdict == self.reported or isinstance(life.verdict, Abandoned), "another verdict"
        if life.disconnected and life.leaving:
            assert self.step not in NEED_THE_SHADOW, f"{self.step} waits for a shadow, the startd for its slot"
        assert (life.state is State.ENDED) == (self.exits == 1)
        if not self.exits:
            assert self.step is not None or life.state in (State.RUNNING, State.SUSPENDED)


# Where stories begin, so that late states are seen as often as early ones: outcomes of steps, and what the job does.
RUNNING = (JobKnown(False, True), StagedIn(), Started())
BEGINNINGS: tuple[tuple[Event, ...], ...] = (
    (),
    RUNNING,
    (*RUNNING, CheckpointReached(JobEnded(85 << 8, True))),
    (*RUNNING, CheckpointReached(JobEnded(85 << 8, True)), FamilyStopped(())),
    (*RUNNING, JobEnded(0, True)),
    (*RUNNING, JobEnded(0, True), FamilyStopped(())),
    (*RUNNING, JobEnded(0, True), FamilyStopped(()), StagedOut("")),
)


@given(st.data())
def test_whatever_happens_a_story_holds_together_and_ends(data: st.DataObject) -> None:
    story = Story()
    for event in data.draw(st.sampled_from(BEGINNINGS)):
        (story.handle if isinstance(event, JobEnded | CheckpointReached) else story.end_step)(event)
    for _ in range(data.draw(st.integers(0, 12))):
        if story.step is not None and data.draw(st.booleans()):
            story.end_step(data.draw(st.sampled_from(ENDS[story.step])))
        else:
            fact = data.draw(st.sampled_from(FACTS))
            if story.possible(fact):
                story.handle(fact)
    for _ in range(20):  # from here on all goes well
        if story.exits:
            break
        if story.life.disconnected and (story.step in NEED_THE_SHADOW or story.step is None):
            story.handle(ShadowLost("the lease is over"))
        elif story.step is not None:
            story.end_step(ENDS[story.step][0])
        else:
            story.handle(JobEnded(0, True) if story.exists else ShadowLost("nothing is left"))
    assert story.exits == 1, story.life.tell()
    if isinstance(story.life.verdict, Exited):
        assert story.output_sent == 1, "a job that exited and whose output went nowhere"
