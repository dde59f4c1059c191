"""What the far side says of a file transfer plugin, whose own words are in it: a judgement, never an exception."""

from __future__ import annotations

import json

from starter.plugins import Order, Wish, judge

ORDER = Order("/p", (Wish("x", "https://h/x"), Wish("y", "https://h/y")), "", False, {}, 1.0)

SEEDS = (
    b'{"status": 0, "said": "", "result": "[ TransferSuccess = true; TransferUrl = \\"https://h/x\\" ]"}',
    b'{"status": 256, "said": "no", "result": "[ TransferSuccess = false ] [ a = { 1, [ b = 2 ] } ]"}',
    b'{"timed_out": true}',
    b'{"status": 0, "result": "[ TransferUrl = \\"https://h/x\\"; TransferSuccess = 1; TransferTotalBytes = 1e300 ]"}',
)


def once(data: bytes) -> None:
    """Judge `data` as the frame, and as the plugin's own file."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    for said in (answer, {"status": 0, "result": data.decode("utf-8", "surrogateescape")}):
        judged = judge(ORDER, said, "node")
        assert judged.failure is None or judged.failure.reason.isprintable()
        assert len(judged.ads) == 3
        for ad in judged.ads:
            str(ad)
