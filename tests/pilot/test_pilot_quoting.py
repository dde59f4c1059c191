"""V1 and V2 words and environments, held against the wheel's own functions on any text."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
from classad2 import ClassAd, ExprTree, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot import quoting
from pilot.configuration import from_values
from pilot.settings import SettingsError
from starter.arguments import arguments_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import htcondor  # brings the ClassAd functions of job ads, too

# What matters to the rules, often; and anything else that an ad can hold.
_CHARACTERS = st.characters(exclude_characters="\0", codec="utf-8")
TEXT = st.text(st.sampled_from(" \t\r\n'\"=;|$aB_\\\u00a0\x0c\x0b") | _CHARACTERS)
NAMES = st.text(st.characters(exclude_characters="=\0", codec="utf-8"), min_size=1, max_size=8)
VALUES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)


def wheel(function: str, text: str) -> Any:
    """The wheel's answer; None for its 'error'."""
    ad = ClassAd({"Text": text})
    ad["Answer"] = ExprTree(f"{function}(Text)")
    answer = ad.eval("Answer")
    return None if isinstance(answer, Value) else answer


def ours(function: Any, text: str) -> Any:
    """Our answer; None for a refusal."""
    with contextlib.suppress(ValueError):
        return function(text)
    return None


@settings(max_examples=400)
@given(TEXT)
def test_v2_words_are_the_wheels(text: str) -> None:
    assert ours(quoting.split_v2, text) == wheel("argsToList", text)


@settings(max_examples=400)
@given(TEXT)
def test_a_v2_environment_is_the_wheels(text: str) -> None:
    found = ours(quoting.environment_v2, text)
    answer = wheel("mergeEnvironment", text)
    assert found == (None if answer is None else quoting.environment_v2(answer))


@settings(max_examples=400)
@given(TEXT)
def test_a_v1_environment_is_the_wheels(text: str) -> None:
    found = ours(quoting.environment_v1, text)
    answer = wheel("envV1ToV2", text)
    assert found == (None if answer is None else quoting.environment_v2(answer))


@given(st.lists(VALUES, max_size=6))
def test_words_that_the_wheel_quotes_come_back(words: list[str]) -> None:
    ad = ClassAd({"Words": words})
    ad["Text"] = ExprTree("listToArgs(Words)")
    assert quoting.split_v2(ad.eval("Text")) == words


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_an_environment_that_the_submit_language_takes_comes_back(variables: dict[str, str]) -> None:
    text = " ".join("'" + f"{name}={value}".replace("'", "''") + "'" for name, value in variables.items())
    assert quoting.environment_v2(text) == variables
    assert quoting.environment_setting('"' + text.replace('"', '""') + '"') == variables


@given(st.lists(st.text(st.sampled_from(" '\"=;ab\\t"), max_size=6), max_size=4))
def test_what_the_submit_language_makes_of_arguments_is_what_was_written(words: list[str]) -> None:
    """The user's `arguments = "..."` through the wheel's parser into an ad, and back to words here."""
    quoted = " ".join("'" + word.replace("'", "''") + "'" for word in words).replace('"', '""')
    (made,) = htcondor.Submit({"executable": "/bin/true", "arguments": f'"{quoted}"'}).jobs(count=1)
    assert arguments_of(ClassAd(str(made))) == tuple(words)


def test_v1_words_are_parted_by_four_characters_only() -> None:
    assert quoting.split_v1(" a\tb\r\nc\u00a0d \x0ce 'f ") == ["a", "b", "c\u00a0d", "\x0ce", "'f"]


def test_a_macro_that_nobody_filled_in_is_no_variable_and_no_reason_to_refuse() -> None:
    assert quoting.environment_v1("A=1;x$$(y);B=$$(z)") == {"A": "1", "B": "$$(z)"}
    assert wheel("envV1ToV2", "A=1;x$$(y)") is not None


def test_the_later_of_two_counts() -> None:
    assert quoting.environment_v2("A=1 B=2 A=3") == {"A": "3", "B": "2"}


@pytest.mark.parametrize("text", ["A=1;s3cret", "=s3cret", "s3cret"])
def test_a_refusal_never_shows_what_may_be_secret(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=VALUE") as refused:
        quoting.environment_v1(text)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("text", ["A=\0", "A=" + "x" * quoting.MAX_STRINGS_BYTES])
def test_what_no_program_can_be_given_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"NUL|longer"):
        quoting.environment_v1(text)


@pytest.mark.parametrize("text", ['"A=1', '"A=1"B=2"', '"'])
def test_a_setting_with_a_stray_double_quote_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="double quote"):
        quoting.environment_setting(text)


def test_what_a_v1_environment_may_begin_with_to_part_its_entries() -> None:
    for character in map(chr, range(1, 256)):
        test_a_v1_environment_is_the_wheels.hypothesis.inner_test(f"{character}a=b{character}c=d")


def test_the_knob_for_all_jobs_variables_is_checked_at_the_start() -> None:
    good = from_values({"STARTER_JOB_ENVIRONMENT": "\"A=1 B='2 3'\""}, source=None)
    assert good.starter_job_environment == (("A", "1"), ("B", "2 3"))
    assert from_values({}, source=None).starter_job_environment == ()
    with pytest.raises(SettingsError, match="STARTER_JOB_ENVIRONMENT"):
        from_values({"STARTER_JOB_ENVIRONMENT": '"A'}, source=None)
