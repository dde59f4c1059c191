"""What goes wrong with a peer has a code, and every code is written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cedar
from cedar.errors import PeerFault, Refused


@pytest.mark.parametrize("kind", [PeerFault, Refused])
def test_every_code_is_told_by_its_class(kind: type[Exception]) -> None:
    sources = "\n".join(path.read_text() for path in Path(cedar.__file__).parent.glob("*.py"))
    raised = set(re.findall(rf'(?:raise|return) {kind.__name__}\(\s*"([\w-]+)"', sources))
    told = set(re.findall(r'"([\w-]+)"', kind.__doc__ or ""))
    assert raised - told == set()
    assert len(raised) > 5
