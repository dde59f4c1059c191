"""What a job sends to its chirp server: each line a request as it is meant, or a refusal; nothing grows."""

from __future__ import annotations

from starter import chirp

ALL = frozenset({"files", "updates", "delayed"})
SEEDS = (
    b"open in.txt rwct 420\nread 3 100\nclose 3\n",
    b'set_job_attr Progress 0.5\nset_job_attr_delayed ChirpA "x\\ y"\n',
    b"ulog half\\\nway\nrename a\\ b c\\\\d\n",
    b"pwrite 3 5 -1\nhello",
)


def once(data: bytes) -> None:
    """Take `data` apart as a connection would, and carry out what needs no submit side."""
    delayed = chirp.Delayed(["Chirp*"], 3)
    rest = data
    while (end := chirp.line_end(rest)) >= 0:
        line, rest = rest[:end], rest[end + 1 :]
        try:
            request = chirp.parse(line, ALL)
            if request.name == "set_job_attr_delayed":
                delayed.set(request.text(0), request.text(1))
            elif request.name == "ulog":
                event = chirp.event(request.text(0))
                assert event["Info"].isprintable() or not event["Info"]
                assert len(event["Info"]) <= chirp.EVENT_CHARACTERS
            elif request.name == "set_job_attr":
                chirp.checked_attribute(request.text(0))
                text = chirp.checked_expression(request.text(1))
                assert list(chirp.as_ad({request.text(0): text})) == [request.text(0)]
        except chirp.Refused:
            continue
        assert not any("\0" in word for word in request.words if isinstance(word, str))
    ad = chirp.as_ad(delayed.pending())
    assert len(ad) <= 3
    assert all(name.lower().startswith("chirp") for name in ad)
