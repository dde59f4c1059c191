"""Kinds of jobs that users hand in, and what must become of each: on the embedded pool, and on a stock pool beside a
stock execution point. Does no I/O but for reading the chirp client of the `htcondor` wheel."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.userlog import (
    ABORTED,
    ATTRIBUTE,
    EVICTED,
    EXECUTING,
    GENERIC,
    HELD,
    IMAGE_SIZE,
    PROBLEM,
    SUBMITTED,
    SUSPENDED,
    TERMINATED,
    TRANSFER,
    UNSUSPENDED,
)  # fmt: skip

ENDS = frozenset({TERMINATED, HELD, ABORTED})
MB = 1 << 20
# Files up to this size are compared, and shown, by what is in them; larger ones by their sum.
SHOWN_BYTES = 1000
GO = "go"
# STARTER_ALLOW_JOB_PRE_AND_POST_CMD of slots that serve the list: one kind of job has commands that are not run.
COMMANDS_ALLOWED = "TARGET.WantNoCommands =!= true"


@attrs.frozen
class Act:
    """What is done to a job: ``verb`` of `sailplane` or condor_VERB, or GO for a file of that name in its place.
    ``after``: an event's number, or the name of a file that the job makes in its place."""

    verb: str
    after: int | str = EXECUTING


_IN, _OUT = (TRANSFER, TRANSFER), (TRANSFER, TRANSFER)
_RAN = (SUBMITTED, *_IN, EXECUTING)
_DONE = (*_RAN, *_OUT, TERMINATED)
_HELD, _HELD_EARLY = (*_RAN, HELD), (SUBMITTED, *_IN, HELD)


@attrs.frozen
class Kind:
    """One kind of job, and what must come of it.

    ``lines``: of the submit file; ``files``: put into the job's place (a directory of the user's) before, by name.
    In both and in ``script``: {place} that directory, {url} a file server, {put} where this job may write on it,
    {later} a time that is to come, in seconds; in ``ad`` {identity} is the user's.
    ``out``, ``err``: of the program, empty if it completes and nothing is said; None where no such file comes.
    ``back``: what lies in the place then, None for what must not. ``sent``: what has come to {put}.
    ``exit`` or ``signal``, or ``hold``: code and subcode; none of them: it is removed. ``words``: in our reason for a
    hold. ``ad``: attributes of the job in the end. ``events``: of the user's log, but for those of changed attributes.
    ``calls``: of the switch, on our side; None where it is not always the same number.
    ``not_embedded``: why the embedded pool cannot have such a job.
    """

    name: str
    script: str
    lines: Mapping[str, str | None] = attrs.field(factory=dict)
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    exit: int | None = 0
    signal: int | None = None
    hold: tuple[int, int] | None = None
    out: str | None = attrs.field(default=attrs.Factory(lambda self: "" if self.completes else None, takes_self=True))
    err: str | None = attrs.field(default=attrs.Factory(lambda self: "" if self.completes else None, takes_self=True))
    back: Mapping[str, bytes | None] = attrs.field(factory=dict)
    sent: Mapping[str, bytes] = attrs.field(factory=dict)
    acts: tuple[Act, ...] = ()
    ad: Mapping[str, object] = attrs.field(factory=dict)
    events: tuple[int, ...] = _DONE
    calls: int | None = 3
    words: str = ""
    not_embedded: str = ""

    def submit_file(self, words: Mapping[str, str], standard: Mapping[str, str]) -> str:
        """Its submit file; ``standard``: lines that the suite wants where the kind says nothing else."""
        lines = {"output": "out", "error": "err", **standard, **self.lines}
        text = "".join(f"{name} = {value}\n" for name, value in lines.items() if value is not None)
        return filled(f"{text}queue\n", words)

    def program(self, words: Mapping[str, str]) -> str:
        """The program, run by sh."""
        return filled(f'#!/bin/sh\ncd "$_CONDOR_SCRATCH_DIR"\n{self.script}\n', words)

    def names(self) -> list[str]:
        """What to look at in its place, and on the file server."""
        return ["out", "err", *self.back]

    @property
    def completes(self) -> bool:
        return self.hold is None and (self.exit, self.signal) != (None, None)

    def ends_as(self, identity: str) -> dict[str, object]:
        """Attributes of its ad in the end, and their values."""
        if self.hold is not None:
            found: dict[str, object] = dict(
                zip(("JobStatus", "HoldReasonCode", "HoldReasonSubCode"), (5, *self.hold), strict=True)
            )
        elif self.signal is not None:
            found = {"JobStatus": 4, "ExitBySignal": True, "ExitSignal": self.signal}
        elif self.exit is not None:
            found = {"JobStatus": 4, "ExitBySignal": False, "ExitCode": self.exit}
        else:
            found = {"JobStatus": 3}
        more = {n: identity if value == "{identity}" else value for n, value in self.ad.items()}
        return found | more


@attrs.frozen
class Seen:
    """What became of one job."""

    files: dict[str, str]
    ad: dict[str, Any]
    events: list[int]


def filled(text: str, words: Mapping[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def content(data: bytes | None) -> str:
    """Of a short file its text, of a longer one the sum; or that there is none."""
    if data is None:
        return "none"
    return data.decode(errors="backslashreplace") if len(data) <= SHOWN_BYTES else hashlib.sha256(data).hexdigest()


def read(path: Path) -> str:
    return content(path.read_bytes() if path.is_file() else None)


def wanted_files(kind: Kind) -> dict[str, str]:
    """By name, in the form of `content`."""
    streams = {"out": kind.out, "err": kind.err}
    given = {name: None if text is None else text.encode() for name, text in streams.items()}
    return {name: content(data) for name, data in {**given, **kind.back}.items()}


def story(events: Sequence[int]) -> list[int]:
    """What a user's log tells, in the order in which it must. A hold or a removal is told with or without the
    problem and the eviction before it, and transfers when the shadow comes to it: their order is left out."""
    told = [number for number in events if number not in (TRANSFER, IMAGE_SIZE, ATTRIBUTE)]
    while len(told) > 1 and told[-1] in (HELD, ABORTED) and told[-2] in (PROBLEM, EVICTED):
        del told[-2]
    return told


@attrs.frozen
class Handed:
    """A job that was handed in: ``place`` as its kind has it, ``events`` in the user's log so far, ``act`` on it."""

    kind: Kind
    place: Path
    events: Callable[[], Sequence[int]]
    act: Callable[[str], None]


Until = Callable[[Callable[[], bool | None], Callable[[], str]], None]


def follow(jobs: Iterable[Handed], until: Until) -> None:
    """Do to each what its kind asks for, until all have ended. ``until`` waits for a condition; its words say what for,
    when it does not come."""
    left = [(job, list(job.kind.acts)) for job in jobs]

    def step() -> bool | None:
        for entry in list(left):
            job, acts = entry
            known = job.events()
            # A job's file may be there before the submit side knows that the job runs: it would refuse to suspend it.
            while acts and EXECUTING in known and (acts[0].after in known or (job.place / str(acts[0].after)).exists()):
                job.act(acts.pop(0).verb)
            if not acts and known and known[-1] in ENDS:
                left.remove(entry)
        return None if left else True

    until(step, lambda: f"the end of {[(job.place.name, job.kind.name, list(job.events())) for job, _ in left]}")


def _chirp_client() -> bytes:
    """The wheel's, which a job's account cannot read where it is installed."""
    wheel = next(path for path in sys.path if os.path.isdir(os.path.join(path, "htcondor")))
    return Path(wheel, "htcondor/htchirp/htchirp.py").read_bytes()


_CHIRP = b"""
import warnings; warnings.simplefilter("ignore")
from htchirp import HTChirp
with HTChirp() as chirp:
    chirp.set_job_attr("Progress", "7")
    print(chirp.get_job_attr("Progress"))
    chirp.set_job_attr_delayed("ChirpDone", '"yes"')
    print(chirp.get_job_attr_delayed("ChirpDone"))
    chirp.ulog("half way")
    chirp.put("large", "kept")
    chirp.fetch("word.in", "again")
    print(open("again").read())
    print(chirp.read("kept", 4, offset=2))
    try: chirp.fetch("/etc/shadow", "never")
    except HTChirp.ChirpError as error: print(type(error).__name__)
"""
# Counts its legs in its checkpoint, and tells by another file whether the sandbox is the same.
_LEGS = """n=$(cat state 2>/dev/null || echo 0); n=$((n + 1)); echo $n >state
echo "leg $n $(test -e here && echo same || echo new)"; touch here
(sleep 600 &)
[ $n -ge 3 ] || exit 85
echo done"""
_CHECKPOINT = {"checkpoint_exit_code": "85", "transfer_checkpoint_files": "state", "transfer_output_files": "state"}
# Writes down which signal it was told to end by; a second run shows it.
_HEARS = (
    "test -e {place}/heard && exec cat {place}/heard\n"
    + "".join(f"trap 'echo {name} >{{place}}/heard; exit 0' {name}\n" for name in ("TERM", "INT", "USR1", "USR2"))
    + "touch {place}/ready; sleep 300 & wait"
)
_SIGNALS = {"kill_sig": "SIGINT", "hold_kill_sig": "SIGUSR1", "remove_kill_sig": "SIGUSR2"}
DATA = bytes(range(256)) * 1024

KINDS: tuple[Kind, ...] = (
    # The first, so that it is not late already.
    Kind("is deferred", "test $(date +%s) -ge {later} && echo waited",
         {"deferral_time": "{later}", "deferral_window": "300", "deferral_prep_time": "300"}, out="waited\n"),
    # Longer than the way to its start, in which a schedd holds it, too; early, so that the others do not wait for it.
    Kind("takes too long", "sleep 60", {"allowed_job_duration": "20"}, hold=(46, 0),
         words="allowed_job_duration", events=_HELD),
    # -- ends ---------------------------------------------------------------------------------------------------------
    Kind("prints", "echo out; echo err >&2", out="out\n", err="err\n"),
    Kind("exits with a code", "exit 37", exit=37),
    Kind("dies of a signal", "kill -USR1 $$; sleep 60", signal=10),
    Kind("fails to be found by its shell", "no-such-command 2>/dev/null", exit=127),
    Kind("leaves a process behind", "sleep 300 & echo left", out="left\n"),
    Kind("has no program", "", {"executable": "/nonexistent/program", "transfer_executable": "false"},
         hold=(6, 2), words="/nonexistent/program",
         events=_HELD_EARLY),
    # -- what it is given ---------------------------------------------------------------------------------------------
    Kind("reads its standard input", "wc -c; cat", {"input": "stdin.in"}, {"stdin.in": b"line one\nline two\n"},
         out="18\nline one\nline two\n"),
    Kind("has input files", "cat a.in b.in", {"transfer_input_files": "a.in, b.in"}, {"a.in": b"a\n", "b.in": b"b\n"},
         out="a\nb\n"),
    Kind("has an input directory", "find tree | LC_ALL=C sort; cat tree/deep/x", {"transfer_input_files": "tree"},
         {"tree/deep/x": b"deep\n", "tree/y": b""}, out="tree\ntree/deep\ntree/deep/x\ntree/y\ndeep\n"),
    Kind("has what is in an input directory", "ls deep y; cat deep/x", {"transfer_input_files": "tree/"},
         {"tree/deep/x": b"deep\n", "tree/y": b""}, out="y\n\ndeep:\nx\ndeep\n"),
    Kind("is handed in with its paths", "cat sub/dir/x",
         {"transfer_input_files": "sub/dir/x", "preserve_relative_paths": "true"}, {"sub/dir/x": b"path\n"},
         out="path\n"),
    Kind("has empty files", ": >empty.back; wc -c <empty.in", {"transfer_input_files": "empty.in"}, {"empty.in": b""},
         out="0\n", back={"empty.back": b""}),
    Kind("has a large file", "cat large.in >large.back",
         {"transfer_input_files": "large.in", "transfer_output_files": "large.back"}, {"large.in": DATA * 16},
         back={"large.back": DATA * 16}),
    Kind("lost its input", "true", {"transfer_input_files": "vanishes"}, hold=(13, 2), events=_HELD_EARLY,
         not_embedded="the pool copies input when the job is handed in, and refuses a job whose file is missing"),
    Kind("has too much input", "true", {"transfer_input_files": "two.in", "max_transfer_input_mb": "1"},
         {"two.in": bytes(2 * MB)}, words="1048576", hold=(32, 0), calls=2, events=_HELD_EARLY),
    # -- what it sees -------------------------------------------------------------------------------------------------
    Kind("has quoted arguments", 'for a in "$@"; do echo "[$a]"; done',
         {"arguments": "\"one 'two three' 'it''s' x=$y\""}, out="[one]\n[two three]\n[it's]\n[x=$y]\n"),
    Kind("has an environment", "echo $COLOUR/$EMPTY/$SIZE", {"environment": "\"COLOUR='deep blue' EMPTY= SIZE=3\""},
         out="deep blue//3\n"),
    Kind("has a program of the machine's", "", {"executable": "/bin/echo", "transfer_executable": "false",
         "arguments": "from the machine"}, out="from the machine\n"),
    Kind("has a umask and a place of its own", "umask; touch x; stat -c %a x; test $PWD = $_CONDOR_SCRATCH_DIR"
         " && test $TMPDIR && echo $OMP_NUM_THREADS; ulimit -c; nice", out=f"0022\n644\n1\n0\n{os.nice(0)}\n"),
    Kind("has a proxy", 'stat -c %a "$X509_USER_PROXY"; test -O "$X509_USER_PROXY" && basename "$X509_USER_PROXY"',
         out="600\nproxy\n", ad={"x509userproxysubject": "{identity}"}),
    Kind("has a token", "cat $_CONDOR_CREDS/box.use", {"+OAuthServicesNeeded": '"box"'}, out="s3cret"),
    Kind("lacks a token", "true", {"+OAuthServicesNeeded": '"nowhere"'}, hold=(4, 0), words="nowhere", calls=2,
         events=_HELD_EARLY),
    Kind("speaks chirp", "printf 0123456789 >large; /usr/bin/python3 client.py; rm large again",
         {"transfer_input_files": "htchirp.py, client.py, word.in", "+WantIOProxy": "true"},
         {"htchirp.py": _chirp_client(), "client.py": _CHIRP, "word.in": b"word"},
         out='7\n"yes"\nword\nb\'2345\'\nNotAuthorized\n', back={"kept": b"0123456789", "large": None},
         ad={"Progress": 7, "ChirpDone": "yes"}, events=(*_RAN, GENERIC, *_OUT, TERMINATED)),
    # -- what comes back ----------------------------------------------------------------------------------------------
    Kind("lists its output", "mkdir -p got/below; echo 1 >got/one; echo 2 >got/below/two; echo 3 >three; : >unwanted",
         {"transfer_output_files": "got, three"},
         back={"got/one": b"1\n", "got/below/two": b"2\n", "three": b"3\n", "unwanted": None}),
    Kind("lists what is in a directory", "mkdir only; echo in >only/inside", {"transfer_output_files": "only/"},
         back={"inside": b"in\n", "only/inside": None}),
    Kind("has its output renamed", "echo new >fresh",
         {"transfer_output_files": "fresh", "transfer_output_remaps": '"fresh=renamed"'},
         back={"fresh": None, "renamed": b"new\n"}),
    Kind("gets back what is new or changed", "echo b >>grows.in; echo new >made; mkdir dir; echo d >dir/d; rm same.in",
         {"transfer_input_files": "same.in, grows.in"}, {"same.in": b"same\n", "grows.in": b"a\n"},
         back={"grows.in": b"a\nb\n", "made": b"new\n", "dir/d": None, "same.in": b"same\n"}),
    Kind("writes both streams to one file", "echo out; echo err >&2; echo out", {"error": "both", "output": "both"},
         out=None, err=None, back={"both": b"out\nerr\nout\n"}),
    Kind("drops its output", "echo out; echo err >&2", {"output": "/dev/null"}, out=None, err="err\n"),
    Kind("streams its output", "echo streamed; echo error >&2", {"stream_output": "true", "stream_error": "true"},
         out="streamed\n", err="error\n"),
    Kind("sends output on success only", "echo part >made; exit 1", {"when_to_transfer_output": "ON_SUCCESS",
         "transfer_output_files": "made", "+JobSuccessExitCode": "0"}, exit=1, back={"made": None}),
    Kind("does not say what its success is", "echo part >made; exit 1", {"when_to_transfer_output": "ON_SUCCESS",
         "transfer_output_files": "made"}, exit=1, back={"made": b"part\n"}),
    Kind("does not make its output", "true", {"transfer_output_files": "never"}, hold=(12, 2), words="never",
         events=_HELD),
    Kind("has too much output", "head -c 2097152 /dev/zero >two", {"transfer_output_files": "two",
         "max_transfer_output_mb": "1"}, words="1048576", hold=(33, 0), events=_HELD, back={"two": None}),
    Kind("sends output from deep below", "mkdir -p a/b/c; echo f >a/b/f; echo g >a/b/c/g",
         {"transfer_output_files": "a/b/f, a/b/c"},
         back={"f": b"f\n", "c/g": b"g\n", "a/b/f": None, "b/f": None}),
    Kind("sends output with its paths", "mkdir -p a/b/c; echo f >a/b/f; echo g >a/b/c/g; echo h >a/h",
         {"transfer_output_files": "a/b/c, a/b/f", "preserve_relative_paths": "true"},
         back={"a/b/f": b"f\n", "a/b/c/g": b"g\n", "a/h": None, "f": None, "c/g": None}),
    Kind("sends what is in a directory with its paths", "mkdir -p a/b; echo f >a/b/f",
         {"transfer_output_files": "a/b/", "preserve_relative_paths": "true"},
         back={"a/b/f": b"f\n", "b/f": None, "f": None}),
    Kind("leaves a named pipe in its output", "mkdir d; mkfifo d/p; echo x >d/x", {"transfer_output_files": "d"},
         back={"d/p": None, "d/x": b"x\n"}, events=(*_RAN, *_OUT, PROBLEM, TERMINATED)),
    Kind("sends a link to a directory", "mkdir d; echo x >d/x; ln -s d l", {"transfer_output_files": "l"},
         hold=(12, 21), words="a link to a directory", events=_HELD),
    Kind("sends links to files", "mkdir d; echo x >x; ln -s ../x d/l; ln -s x l", {"transfer_output_files": "d, l"},
         back={"d/l": b"x\n", "l": b"x\n"}),
    # -- URLs ---------------------------------------------------------------------------------------------------------
    Kind("moves files by URL", "test -O data.bin && cp data.bin result.bin; echo x >plain",
         {"transfer_input_files": "{url}/data.bin", "transfer_output_files": "result.bin, plain",
          "transfer_output_remaps": '"result.bin={put}/result"'},
         back={"plain": b"x\n", "result.bin": None}, sent={"result": DATA}),
    Kind("wants a URL that is not there", "true", {"transfer_input_files": "{url}/missing"}, hold=(13, 256),
         words="404", events=_HELD_EARLY),
    # -- around it ----------------------------------------------------------------------------------------------------
    Kind("has commands before and after it", "cat pre; exit 9",
         {"transfer_input_files": "pre.sh, post.sh", "+PreCmd": '"pre.sh"', "+PreArguments": "\"'a b'\"",
          "+PreEnvironment": '"WORD=x"', "+PostCmd": '"post.sh"'},
         {"pre.sh": b"#!/bin/sh\necho $WORD $1 >pre\n", "post.sh": b"#!/bin/sh\necho post >post\n"},
         exit=9, out="x a b\n", back={"pre": b"x a b\n", "post": b"post\n"}),
    Kind("has commands that this slot does not run", "exit 9",
         {"+PreCmd": '"/bin/false"', "+SuccessPreExitCode": "0", "+PostCmd": '"/no/such"', "+WantNoCommands": "true"},
         exit=9),
    Kind("has a command before it that fails", "true", {"+PreCmd": '"/bin/false"', "+SuccessPreExitCode": "0"},
         hold=(43, 1), words="+PreCmd", events=_HELD_EARLY),
    Kind("has a command after it that fails", "true", {"+PostCmd": '"/bin/false"', "+SuccessPostExitCode": "0"},
         hold=(44, 1), words="+PostCmd", events=_HELD),
    Kind("checkpoints itself", _LEGS, _CHECKPOINT, out="leg 1 new\nleg 2 same\nleg 3 same\ndone\n",
         back={"state": b"3\n"}, calls=7, ad={"CheckpointNumber": 1}),
    # -- limits -------------------------------------------------------------------------------------------------------
    Kind("runs for too long", "sleep 60", {"allowed_execute_duration": "1"}, hold=(47, 0),
         words="allowed_execute_duration", events=_HELD),
    Kind("takes too much memory", 'exec /usr/bin/python3 -c "b = bytearray(300 << 20); import time; time.sleep(300)"',
         hold=(34, 102), words="request_memory", events=_HELD),
    # -- what is done to it -------------------------------------------------------------------------------------------
    Kind("is removed", "sleep 300", acts=(Act("rm"),), exit=None, events=(*_RAN, EVICTED, ABORTED)),
    Kind("hears of its removal", _HEARS, _SIGNALS, acts=(Act("rm", "ready"),), exit=None,
         back={"heard": b"USR2\n"}, events=(*_RAN, EVICTED, ABORTED)),
    Kind("hears of its hold", _HEARS, _SIGNALS, acts=(Act("hold", "ready"),), hold=(1, 0),
         back={"heard": b"USR1\n"}, events=(*_RAN, EVICTED, HELD)),
    Kind("hears of its hold by a periodic expression", _HEARS,
         {**_SIGNALS, "periodic_hold": "JobStatus == 2 && time() - JobCurrentStartExecutingDate > 5",
          "periodic_hold_subcode": "7"},
         hold=(3, 7), back={"heard": b"USR1\n"}, events=(*_RAN, EVICTED, HELD),
         not_embedded="it evaluates no periodic expressions, and refuses a job that has one"),
    Kind("hears that it is vacated", _HEARS, _SIGNALS, acts=(Act("vacate", "ready"),), out="USR2\n",
         back={"heard": b"USR2\n"}, calls=6, events=(*_RAN, EVICTED, *_IN, EXECUTING, *_OUT, TERMINATED)),
    Kind("saves its files when it is vacated",
         "test -e part && exec cat part\ntrap 'echo more >>part; exit 0' TERM\n"
         "echo some >part; touch {place}/ready; sleep 300 & wait",
         {"when_to_transfer_output": "ON_EXIT_OR_EVICT", "transfer_output_files": "part"},
         acts=(Act("vacate", "ready"),), out="some\nmore\n", back={"part": b"some\nmore\n"}, calls=6,
         events=(*_RAN, *_OUT, EVICTED, *_IN, EXECUTING, *_OUT, TERMINATED)),
    Kind("is suspended and goes on", "touch {place}/ready; until test -e {place}/go; do sleep 0.1; done; echo went on",
         acts=(Act("suspend", "ready"), Act("continue", SUSPENDED), Act(GO, UNSUSPENDED)), out="went on\n",
         events=(*_RAN, SUSPENDED, UNSUSPENDED, *_OUT, TERMINATED)),
)  # fmt: skip
