"""$$() in a job's words."""

from __future__ import annotations

import pytest
from classad2 import ClassAd

from pool.macros import MAX_TEXT, filled

SLOT = ClassAd({"Name": "slot1@n", "Cpus": 4, "Yes": True, "CondorScratchDir": "#CoNdOrScRaTcHdIr#", "Bad": "a\nb",
                "Long": "x" * (MAX_TEXT + 1), "List": [1]})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("-j $$(Cpus) $$(name)", "-j 4 slot1@n"),
        ("$$(CondorScratchDir)/x", "#CoNdOrScRaTcHdIr#/x"),
        ("$$(Nothing:none) $$(Cpus:9)", "none 4"),
        ("$$(Nothing)", "$$(Nothing)"),
        ("$$(Yes)", "TRUE"),
        ("$$([RequestCpus * TARGET.Cpus])", "8"),
        ("$$([)(])", "$$([)(])"),
        ("$$(Bad) $$(Long) $$(List)", "$$(Bad) $$(Long) $$(List)"),
        ("$(Cpus) $$ ($$(", "$(Cpus) $$ ($$("),
    ],
)
def test_words_are_filled_in_from_the_slot(text: str, then: str) -> None:
    job = ClassAd({"Arguments": text, "Environment": f"'A={text}'", "RequestCpus": 2, "Other": text})
    found = filled(job, SLOT)
    assert found["Arguments"] == then
    assert found["Environment"] == f"'A={then}'"
    assert found["Other"] == text
    assert job["Arguments"] == text
