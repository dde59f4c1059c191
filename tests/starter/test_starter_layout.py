"""Copied code does what the code did, and a rehearsal before the fork leaves nothing in the process that forks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FunctionType

import pytest

from pilot.configuration import load
from starter import layout
from starter.rehearsal import rehearse

ROOT = Path(__file__).resolve().parents[2]
PAGE_BYTES = 4096


class Counter:
    """What a starter's classes are made of: methods, a property, a closure, defaults."""

    def __init__(self, start: int = 40) -> None:
        self._number = start

    @property
    def number(self) -> int:
        return self._number

    def adder(self) -> Callable[[int], int]:
        def add(more: int, *, twice: bool = True) -> int:
            return self.number + more * (2 if twice else 1)

        return add

    async def later(self) -> list[int]:
        return [self.number + each for each in range(2)]

    def unused(self) -> int:
        return self._number


def outcome() -> tuple[int, int, str]:
    counter = Counter()
    coroutine = counter.later()
    with pytest.raises(StopIteration) as returned:
        coroutine.send(None)
    return counter.adder()(1), sum(returned.value.value), Counter.adder.__qualname__


def codes() -> dict[str, CodeType]:
    number = Counter.number.fget
    assert number is not None
    functions = (Counter.__init__, number, Counter.adder, Counter.later, Counter.unused)
    return {each.__name__: each.__code__ for each in functions}


def test_code_that_ran_is_copied_and_does_the_same() -> None:
    expected, before, functions = outcome(), codes(), (Counter.adder, Counter.later)
    moved = layout.settle(lambda: assert_equal(outcome(), expected))
    after = codes()
    assert moved >= len(before) - 1
    assert after == before
    assert {name for name in before if after[name] is before[name]} == {"unused"}
    assert (Counter.adder, Counter.later) == functions
    assert outcome() == expected


def assert_equal(one: object, other: object) -> None:
    assert one == other


def test_nothing_is_moved_when_the_rehearsal_fails() -> None:
    def fail() -> None:
        outcome()
        raise OSError(24, "no descriptors")

    before = codes()
    with pytest.raises(OSError, match="no descriptors"):
        layout.settle(fail)
    after = codes()
    assert all(after[name] is before[name] for name in before)
    assert sys.getprofile() is None


def in_a_fork(check: Callable[[], None]) -> None:
    """The processes of tests keep their own layout."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException:  # for the report
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def pages(codes: Iterable[CodeType]) -> int:
    return len({id(code) // PAGE_BYTES for code in codes})


def test_a_rehearsal_leaves_no_thread_child_or_descriptor(tmp_path: Path) -> None:
    settings = load(None, {"_CONDOR_SAILPLANE_RUN_DIR": str(tmp_path)})

    def check() -> None:
        before = [(each, each.__code__) for each in gc.get_objects() if type(each) is FunctionType]
        descriptors = os.listdir("/proc/self/fd")
        layout.settle(partial(rehearse, settings))
        moved = [(code, function.__code__) for function, code in before if function.__code__ is not code]
        assert len(moved) > 500
        assert os.listdir("/proc/self/fd") == descriptors
        assert threading.active_count() == 1
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        assert list(tmp_path.iterdir()) == []
        rehearse(settings)

    in_a_fork(check)


def look_at_the_layout() -> None:
    """In a process that is as the spawner's."""
    before = [(each, each.__code__) for each in gc.get_objects() if type(each) is FunctionType]
    with TemporaryDirectory() as run_dir:
        layout.settle(partial(rehearse, load(None, {"_CONDOR_SAILPLANE_RUN_DIR": run_dir})))
    moved = [(code, function.__code__) for function, code in before if function.__code__ is not code]
    new, old = pages(new for _, new in moved), pages(old for old, _ in moved)
    assert new < old / 2, f"{len(moved)} functions: {new} pages, before {old}"


def test_a_rehearsed_job_lies_side_by_side() -> None:
    program = "from tests.starter.test_starter_layout import look_at_the_layout; look_at_the_layout()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
