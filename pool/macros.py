"""``$$(Attribute)`` in a job's words, filled in from the slot that the job was matched to. Pure.

``$$(Attribute:default)`` has a text for a slot that does not say, ``$$([expression])`` is evaluated in the job's ad
against the slot's. What a slot cannot answer stays as it is written. A slot's answer is a peer's word: no line ends,
and never longer than MAX_TEXT.
"""

from __future__ import annotations

import re
from typing import Any

from classad2 import Value

from cedar import classads
from cedar.errors import PeerFault
from pool.ads import complete, evaluate, text_of

# The attributes in which stock fills them in, as far as this pool knows them.
_FILLED = ("Arguments", "Args", "Environment", "Env", "Cmd", "In")
_MACRO = re.compile(
    r"\$\$\((?:\[(?P<expression>[^\]]{1,1000})\]|(?P<name>[A-Za-z_]\w{0,127})(?::(?P<default>[^)]*))?)\)"
)
MAX_TEXT = 1024


def filled(ad: Any, slot: Any) -> Any:
    """A copy of the job's ad with its words filled in."""
    more = {}
    for name in _FILLED:
        text = text_of(ad, name)
        if "$$(" in text:
            more[name] = _MACRO.sub(lambda found: _text(found, ad, slot), text)
    return complete(ad, more)


def _text(found: re.Match[str], ad: Any, slot: Any) -> str:
    value = _value(found, ad, slot)
    if isinstance(value, bool):
        value = "TRUE" if value else "FALSE"
    if isinstance(value, Value) or not isinstance(value, str | int | float):
        default = found["default"]
        return found[0] if default is None else default
    text = str(value)
    return text if len(text) <= MAX_TEXT and text.isprintable() else found[0]


def _value(found: re.Match[str], ad: Any, slot: Any) -> Any:
    if found["expression"] is None:
        return evaluate(slot, found["name"])
    try:
        asked = classads.from_wire([f"SailplaneMacro = {found['expression']}"])
    except PeerFault:
        return Value.Error
    trial = complete(ad, {})
    trial.update(asked)
    return evaluate(trial, "SailplaneMacro", slot)
