"""What hostile expressions cost the thread that evaluates them: bounded, whatever they are."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from classad2 import ClassAd, Value

from cedar import apart, reach, regexcost
from cedar.apart import AT_ONCE_S, Allowance
from cedar.classads import WHAT_A_QUERY_MAY, evaluate, from_wire, get_int, get_str, wanted
from cedar.errors import PeerFault

A_STRING = f'x = "{"a" * 40}!"'
DOUBLING = [*(f"a{n} = a{n + 1} + a{n + 1}" for n in range(30)), "a30 = 1"]
NESTED = "[" + "; ".join(f"b{n} = b{n + 1} + b{n + 1}" for n in range(30)) + "; b30 = 1]"
LONG = f'x = "{"a" * 50_000}"'
EVIL = 'regexp("(a+)+$", x)'
# Each takes from a second to years where nothing stops it.
ATTACKS = {
    "one repetition in another": [f"A = {EVIL}", A_STRING],
    "40 of them": [f"A = {' || '.join([EVIL] * 40)}", A_STRING],
    "behind references": [f"A = {' || '.join(['y'] * 40)}", f"y = {EVIL}", A_STRING],
    "a pattern that is made": ['A = regexp(strcat("(a+", ")+$"), x)', A_STRING],
    "a list": ['A = regexpMember("(a+)+$", split(y))', f'y = "{("a" * 40 + "! ") * 50}"'],
    "a string list": ['A = stringList_regexpMember("(a+)+$", y)', f'y = "{("a" * 40 + "!,") * 50}"'],
    "a long string": ['A = regexp("a*?[bc]", x)', f'x = "{"a" * 200_000}"'],
    "replacements": ['A = size(replaceAll("a*?[bc]|a", x, x))', LONG],
    "alternatives": [f'A = regexp("{"(a|aa)?" * 40}[bc]", x)', A_STRING],
    "references": [*DOUBLING, "A = a0"],
    "references in a nested ad": [f"A = {NESTED}.b0"],
    "a nested ad's own scope": [
        f"A = {NESTED.replace(' b', ' MY.b').replace('+ b', '+ MY.b')}.b0".replace("; MY.", "; ")
    ],
    "a name in a string": [*DOUBLING, 'A = MY["a0"]'],
    "a text to evaluate": [*DOUBLING, 'A = eval("a0")'],
    "what is put beside two ads": ["A = symmetricMatch", "Requirements = a0", *DOUBLING],
    "join": ["A = size(join(x, split(y)))", LONG, f'y = "{"b " * 50_000}"'],
    "contexts": [f"A = size(evalInEachContext(a18, {{{','.join(['[]'] * 500)}}}))", *DOUBLING],
}


def children() -> set[str]:
    found: set[str] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # an idle thread ends by itself
            found.update(path.read_text().split())
    return found


@pytest.fixture(autouse=True)
def own_allowance(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a daemon has it at first; on a busy machine the clock is no measure; and every child is reaped."""
    monkeypatch.setattr(apart, "AT_ONCE_S", AT_ONCE_S)
    monkeypatch.setattr(apart, "shared", Allowance())
    monkeypatch.setattr(apart, "CLOCK_S", 10.0)
    before = children()
    yield
    assert children() <= before


def unit_s() -> float:
    """What a loop takes on this machine as busy as it is: 30 ms where nothing else runs."""
    began_s = time.perf_counter()
    for _ in range(4_000_000):
        pass
    return time.perf_counter() - began_s


def within_units(most: float, work: Callable[[], object]) -> bool:
    """Whether this thread was away for so many units at most. There are more trials: a machine may hang by itself."""
    for _ in range(5):
        before_s, began_s = unit_s(), time.perf_counter()
        work()
        took_s = time.perf_counter() - began_s
        if took_s < most * max(before_s, unit_s()):
            return True
    return False


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_evaluation_takes_some_tens_of_milliseconds_and_is_an_error(attack: str) -> None:
    """Five units are some 150 ms: five times what an evaluation may take, and a tenth of the least of these."""
    ad, target = from_wire(ATTACKS[attack]), from_wire(["Requirements = true"])
    assert within_units(5, lambda: evaluate(ad, "A", target))
    apart.shared = Allowance()
    assert evaluate(ad, "A", target) is Value.Error


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_read_off_the_wire_is_never_evaluated_at_such_a_cost(attack: str) -> None:
    ad = from_wire(ATTACKS[attack])
    asked = Allowance(left_s=-math.inf)
    apart.shared = asked
    assert get_int(ad, "A", -1) == -1
    assert get_str(ad, "A", "default") == "default"
    with pytest.raises(PeerFault):
        get_str(ad, "A")
    assert asked.seen_s == 0, "a process was asked for"


LARGE = {
    "10,000 attributes": [f'B{number} = "{"x" * 90}"' for number in range(9_999)],
    "100,000 attributes": [f"B{number} = 1" for number in range(100_000)],
    "a megabyte of quotes": ['A = "' + 'x\\"' * 340_000 + '"'],
    "as many tokens as may be": [f"B{number} = " + " + ".join(["x"] * 10) for number in range(2_500)],
    "more tokens": [f"B{number} = " + " + ".join(["x"] * 10) for number in range(50_000)],
    "brackets": ["A = " + "(" * 190 + "1" + ")" * 190] * 120,
    "more brackets": ["A = " + "(" * 500_000 + "1" + ")" * 500_000],
    "ads in a list": ["A = {" + ",".join(["[a = 1; b = 2]"] * 4_500) + "}"],
    "a chain": [*(f"B{number} = B{number + 1}" for number in range(9_990)), "A = B0", "B9990 = 1"],
    "a wide chain": [*(f"B{n} = strcat(B{n + 1}, x)" for n in range(400)), "A = size(B0)", LONG, 'B400 = "x"'],
}


@pytest.mark.parametrize("large", LARGE)
def test_a_large_ad_is_read_and_evaluated_in_some_tens_of_milliseconds(large: str) -> None:
    """Of an ad of a megabyte: 75 ms where nothing else runs."""

    def read() -> None:
        with suppress(PeerFault):
            ad = from_wire(LARGE[large])
            evaluate(ad, "A")
            get_int(ad, "B0", 0)

    assert within_units(5, read)


def test_a_thousand_evaluations_together_get_a_share_of_the_thread() -> None:
    ad = from_wire(ATTACKS["40 of them"])
    assert within_units(25, lambda: [evaluate(ad, "A") for _ in range(1_000)])


def test_the_allowance_comes_back_as_time_goes_on() -> None:
    allowance = Allowance(seen_s=100.0)
    assert allowance.ask(100.0)
    allowance.spend(AT_ONCE_S + 0.05)
    assert not allowance.ask(100.4)
    assert allowance.ask(100.6)
    assert allowance.ask(1e9)
    assert allowance.left_s == AT_ONCE_S


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('regexp("^(a|b)+$", "abba")', True), ('regexps("(.*)@(.*)", "a@b", "\\2")', "b"), ('eval("1 + 1")', 2),
        ('eval("1.5")', 1.5), ('eval("missing")', Value.Undefined), ('eval("1 / 0")', Value.Error),
        ('eval("\\"undefined\\"")', "undefined"), ('eval("\\"\u00e9\\"")', "\u00e9"),
        ('real(eval("\\"INF\\""))', math.inf),
        ("[a = b; b = 3].a", 3), ("size(unparse(y))", 5),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_evaluated_all_the_same(text: str, value: object) -> None:
    ad = ClassAd()
    ad["y"] = from_wire(["y = 1 + 2"]).lookup("y")
    holder = from_wire([f"A = {text}"])
    for name in ad:
        holder[name] = ad.lookup(name)
    assert not reach.bounded(holder, "A")
    assert evaluate(holder, "A") == value


@pytest.mark.parametrize(
    "text",
    [
        'regexp("^L.*x", OpSys)', 'regexp("slot[0-9]+@.*", Name, "i")', 'regexp("(el7|el8|el9)", OpSys)',
        'stringListMember("a", y) && member(Name, {"a", "b"}) && RequestMemory <= 2 * y',
        'regexp("", Name)', '[Id = "GPU-0"; Capability = 8.0].Capability >= 7', 'stringListRegexpMember("a.c", Name)',
        'ifThenElse(isUndefined(y), strcat("a", Name), join_ is undefined)', "MY.Name =?= TARGET.Name",
    ],
)  # fmt: skip
def test_the_ordinary_is_evaluated_here(text: str) -> None:
    ad = from_wire([f"A = {text}", 'OpSys = "LINUX"', 'Name = "slot1_1@node17.example.org"', 'y = "a,b"'])
    assert reach.bounded(ad, "A", from_wire(['Name = "x"']))


def test_devices_are_counted_here_where_their_descriptions_are_plain() -> None:
    """What condor_submit makes of require_gpus, on a node of eight."""
    described = 'DeviceName = "NVIDIA A100-SXM4-40GB"; Capability = 8.0; GlobalMemoryMb = 40536; ECCEnabled = true; '
    ids = [f"GPUs_GPU_{number}" for number in range(8)]
    lines = [*(f'{each} = [Id = "{each}"; {described * 3}]' for each in ids), f"AvailableGPUs = {{{', '.join(ids)}}}"]
    question = "A = countMatches(MY.RequireGPUs, TARGET.AvailableGPUs) >= 8"
    job, slot = from_wire([question, "RequireGPUs = Capability >= 7.5 && GlobalMemoryMb >= 16000"]), from_wire(lines)
    assert reach.bounded(job, "A", slot)
    assert evaluate(job, "A", slot) is True
    dear = from_wire([*lines[:-2], "GPUs_GPU_7 = [Id = a0; Capability = a0]", lines[-1], *DOUBLING])
    assert not reach.bounded(job, "A", dear)
    assert not reach.bounded(from_wire([question, "RequireGPUs = a0", *DOUBLING]), "A", slot)
    assert not reach.bounded(job, "A", from_wire([f'AvailableGPUs = split("{"a " * 1000}")']))


@pytest.mark.parametrize(
    ("pattern", "chars", "least_ns"),
    [
        ("abc", 100, 100), ("a*b", 1_000, 1e6), (".*a.*b", 100, 1e6), ("(a+)+$", 1, math.inf), ("(a|b)*", 1, math.inf),
        ("(?=a)b", 1, math.inf), (r"(a)\1", 1, math.inf), ("(*LIMIT_MATCH=1)a", 1, math.inf), ("a{2}{3}", 1, math.inf),
        ("(a", 1, math.inf), ("a)", 1, math.inf), ("[a", 1, math.inf), ("(?i:a+)+", 1, math.inf), (r"\Qa", 1, math.inf),
        (r"a**", 1, math.inf), ("(?R)", 1, math.inf), ("[[:alpha:]]", 1, math.inf), ("a*" * 6, 1, math.inf),
        ("(?:a?)" * 30, 10, 1e15), ("(a|a)" * 20, 1, 1e3),
    ],
)  # fmt: skip
def test_what_a_pattern_may_cost(pattern: str, chars: int, least_ns: float) -> None:
    assert regexcost.cost_ns(pattern, chars) >= least_ns


def test_a_query_is_judged_only_and_told_what_it_may() -> None:
    for attack in ATTACKS.values():
        query = from_wire([line.replace("A = ", "Requirements = ", 1) for line in attack if line[:8] != "Requirem"])
        with pytest.raises(PeerFault, match=WHAT_A_QUERY_MAY):
            wanted(query, from_wire(["Requirements = true"]))


def test_the_clock_ends_what_takes_no_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "CLOCK_S", 0.1)
    began_s = time.monotonic()
    assert apart.evaluate(lambda: time.sleep(60)) is Value.Error
    assert time.monotonic() - began_s < 30


def test_an_evaluation_apart_has_little_memory() -> None:
    """Pages that are never touched take no time."""
    assert apart.evaluate(lambda: len(bytes(1 << 20))) == 1 << 20
    assert apart.evaluate(lambda: len(bytes(apart.MEMORY_BYTES * 4))) is Value.Error


def test_no_collection_of_what_the_daemon_has_counts_as_evaluating() -> None:
    assert gc.isenabled()
    assert apart.evaluate(gc.isenabled) is False
    assert gc.isenabled()


def test_an_evaluation_apart_that_dies_or_says_too_much_is_an_error() -> None:
    for work in (lambda: os.kill(os.getpid(), 11), lambda: "x" * apart.MAX_ANSWER_BYTES, lambda: [1], lambda: 1 / 0):
        apart.shared = Allowance()
        assert apart.evaluate(work) is Value.Error
    apart.shared = Allowance()
    assert apart.evaluate(lambda: "x" * (apart.MAX_ANSWER_BYTES - 4)) == "x" * (apart.MAX_ANSWER_BYTES - 4)
