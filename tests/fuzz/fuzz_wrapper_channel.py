"""What the far side of a launch says: the frames of its hello and its last word, its report, what it says of files."""

from __future__ import annotations

import contextlib

from pilot.farside import CallFailed, parse_object
from starter import launch
from starter.launch import After, Broken, ExecFailed, judge, last_word

SEEDS = (
    b"g",
    b"wg",
    b"",
    b'wg{"step": "exec", "errno": 2, "text": "No such file or directory"}',
    b'g{"step": "a\\nb", "errno": true, "text": ["\\u001b[31m"]}',
    b'{"ended": 0, "after": 256}',
    b'{"ended": 139, "failed": {"step": "post", "errno": 13, "text": "x"}}',
)


def once(data: bytes) -> None:
    """Read `data` as the report of a launch, and as the last word of a wrapper that stays."""
    with contextlib.suppress(CallFailed):
        said = judge(data)
        assert said is None or isinstance(said, ExecFailed | Broken)
        assert (said is None) == (data in (b"g", b"wg")), "only these mean that the job runs"
        if isinstance(said, ExecFailed):
            harmless(said)
    with contextlib.suppress(CallFailed):
        frame = parse_object(data)
        word = last_word(frame)
        if word is not None:
            status, after = word
            launch.exact_outcome(status)
            assert isinstance(after, After)
            if after.trouble is not None:
                harmless(after.trouble)


def harmless(reason: ExecFailed) -> None:
    """It goes into a log line and a hold reason."""
    assert 0 <= reason.errno < 4096
    assert reason.text.isprintable() or not reason.text
    assert reason.step.isprintable() or not reason.step
    assert len(reason.text) <= 300
    assert len(reason.step) <= 40
