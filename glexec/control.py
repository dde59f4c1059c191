"""The control socket's words: what may be asked in which phase, and how it is written. Pure.

One datagram each way, ASCII JSON. Whoever holds the near end may steer the family without a new
authorisation, so the first datagram that is not exactly one of these ends the conversation.
"""

LIMIT_BYTES = 512  # the longest allowed request has 50

RUNNING = "running"
STOPPED = "stopped"
EMPTIED = "emptied"  # kill-all was carried out; only what no signal ends can be left

# (phase, request) -> (next phase, is it carried out). Two holders (starter and procd) share the
# near end, so a request may be on its way while the other one's kill-all is carried out: answered,
# not carried out.
RULES = {
    (RUNNING, "signal"): (RUNNING, True),
    (RUNNING, "stop"): (STOPPED, True),
    (RUNNING, "cont"): (RUNNING, True),
    (RUNNING, "kill-all"): (EMPTIED, True),
    (STOPPED, "signal"): (STOPPED, True),
    (STOPPED, "stop"): (STOPPED, True),
    (STOPPED, "cont"): (RUNNING, True),
    (STOPPED, "kill-all"): (EMPTIED, True),
    (EMPTIED, "signal"): (EMPTIED, False),
    (EMPTIED, "stop"): (EMPTIED, False),
    (EMPTIED, "cont"): (EMPTIED, False),
    (EMPTIED, "kill-all"): (EMPTIED, True),
}
_LAST_SIGNAL = 64


class Malformed(Exception):
    """The datagram is none of the requests."""


class Ask:
    """One request; number and to_all only for `signal`."""

    def __init__(self, verb: str, number: int = 0, to_all: bool = False) -> None:
        self.verb = verb
        self.number = number
        self.to_all = to_all


def understand(data: bytes) -> Ask:
    """A datagram as a request; Malformed for anything else, however deep or long."""
    import json  # 7 ms, paid only by calls that are steered, while the payload already runs

    if len(data) > LIMIT_BYTES:
        raise Malformed("too long")
    try:
        message = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        raise Malformed("not ASCII JSON") from None
    if not isinstance(message, dict):
        raise Malformed("not an object")
    verb = message.get("do")
    if verb == "signal" and set(message) == {"do", "number", "to"}:
        number, to = message["number"], message["to"]
        if type(number) is int and 1 <= number <= _LAST_SIGNAL and to in ("root", "all"):
            return Ask("signal", number, to == "all")
    elif verb in ("stop", "cont", "kill-all") and set(message) == {"do"}:
        return Ask(str(verb))
    raise Malformed("not a request")


def hello(pid: int, root_pid: int) -> bytes:
    return b'{"linger": true, "pid": %d, "root_pid": %d}' % (pid, root_pid)


def done(verb: str, left: int) -> bytes:
    return b'{"done": "%s", "left": %d}' % (verb.encode(), left)


def ended(status: int, left: int, user_ms: int, system_ms: int) -> bytes:
    """The last word: the payload's full wait status, core flag included, and the CPU time of it and of all that it
    started, as far as somebody has waited for it."""
    return b'{"ended": %d, "left": %d, "user_ms": %d, "system_ms": %d}' % (status, left, user_ms, system_ms)
