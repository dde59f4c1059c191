"""What a file transfer plugin tells of a transfer beside its success, as far as it goes on to the submit side. Pure.

Names and types are those that stock starters let through to the job's history (25.14); of these what is written down
as it is, not what would have to be evaluated, and only so much of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from classad2 import ClassAd, ExprTree, Value

from cedar.classads import is_private, set_str
from cedar.expressions import unshield
from pilot.farside import text_of

# Of one transfer: an ad for each try, with what plugin and developer say of it.
MOST_TRIES, MOST_OF_DEVELOPERS, MOST_CHARS = 8, 16, 512
_OF_A_RESULT: Mapping[str, type] = {
    "TransferFileBytes": int, "TransferStartTime": int, "TransferEndTime": int, "ConnectionTimeSeconds": float,
}  # fmt: skip
_OF_A_TRY: Mapping[str, type] = {
    "IntermediateServerErrorType": str, "IntermediateServer": str, "ErrorType": str, "PluginVersion": str,
    "PluginLaunched": bool, "FailedName": str, "FailureType": str, "FailedServer": str, "ShouldRefresh": bool,
    "ErrorCode": int, "ErrorString": str, "Retryable": int,
}  # fmt: skip
# A name may have any characters in an ad, and any length.
_ATTRIBUTE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_DEVELOPERS = "DeveloperData"
_TRIES = "TransferErrorData"


def words_of(result: ClassAd) -> ClassAd:
    """Of a plugin's ad about one URL."""
    ad = _of(result, _OF_A_RESULT)
    tries = result.get(_TRIES)
    if isinstance(tries, list):
        found = [_of(one, _OF_A_TRY) for one in tries[:MOST_TRIES] if isinstance(one, ClassAd)]
        if found:
            ad[_TRIES] = found
    return ad


def _of(said: ClassAd, wanted: Mapping[str, type]) -> ClassAd:
    ad = ClassAd()
    for name, kind in wanted.items():
        _put(ad, name, said.get(name), (kind,))
    of_developers = said.get(_DEVELOPERS)
    if isinstance(of_developers, ClassAd):
        own = ClassAd()
        for name in sorted(filter(_ATTRIBUTE.fullmatch, of_developers))[:MOST_OF_DEVELOPERS]:
            if not is_private(name):
                _put(own, name, of_developers.get(name), (str, bool, int, float))
        ad[_DEVELOPERS] = own
    return ad


def _put(ad: ClassAd, name: str, value: Any, kinds: tuple[type, ...]) -> None:
    if isinstance(value, ExprTree | Value) or type(value) not in kinds:
        return
    if isinstance(value, str):
        set_str(ad, name, text_of(unshield(value), MOST_CHARS))
    else:
        ad[name] = value
