"""The wrapper's modules by themselves: frames, clearing, and what they may cost and use."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobwrapper import clear, frames
from jobwrapper.__main__ import VERBS as VERBS_BY_WORD
from tests.jobwrapper.farsides import WRAPPER

MODULES = sorted(WRAPPER.glob("*.py"))
VERBS = sorted(VERBS_BY_WORD.values())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), values))
def test_our_json_is_json(value: dict[str, object]) -> None:
    text = frames.dumps(value)
    assert text.isascii()
    assert json.loads(text) == value
    assert frames.loads(json.dumps(value)) == value


@given(st.binary())
def test_names_survive_the_wire(name: bytes) -> None:
    text = frames.loads(frames.dumps({"name": frames.to_text(name)}))["name"]
    assert frames.to_bytes(text) == name


@pytest.mark.parametrize("text", ["", "[]", "{} {}", "{", "7", '{"a"}', "nonsense"])
def test_what_is_not_one_object(text: str) -> None:
    with pytest.raises((ValueError, StopIteration)):
        frames.loads(text)


def test_without_the_c_module_there_is_the_slow_one() -> None:
    quote, scan = frames._python_json()
    assert json.loads(quote("é\n")) == "é\n"
    assert scan('{"a": 1}', 0) == ({"a": 1}, 8)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_syntax_of_python_3_6(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_module_hides_one_of_the_library(path: Path) -> None:
    """Run as a directory, the wrapper's names come before the library's."""
    assert path.stem not in sys.stdlib_module_names or path.stem.startswith("__")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_imports_nothing_heavy(verb: str) -> None:
    """Each of these costs 3 to 8 ms, in every call for every job."""
    program = f"""
import sys
sys.path.insert(0, {str(WRAPPER.parent)!r})
import jobwrapper.{verb}
print(*sys.modules)
"""
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", program], capture_output=True, text=True, check=True)
    heavy = {
        "re",
        "enum",
        "typing",
        "json",
        "socket",
        "signal",
        "struct",
        "ctypes",
        "subprocess",
        "contextlib",
    }
    assert heavy & set(done.stdout.split()) == set()


@pytest.mark.parametrize("entry", ["", "/__main__.py"])
@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["os"], ["launch", "more"]])
def test_wrong_usage(entry: str, arguments: list[str]) -> None:
    done = subprocess.run(["/usr/bin/python3", "-IS", f"{WRAPPER}{entry}", *arguments], capture_output=True)
    assert done.returncode == 100
    assert done.stderr.startswith(b"usage: ")


@pytest.mark.parametrize("verb", ["launch", "stage-in", "stage-out", "signal"])
def test_a_pilot_that_is_gone_at_once(verb: str) -> None:
    """Also with all standard descriptors but the socket closed."""
    import socket

    for close in ("", "exec 1>&- 2>&-; "):
        near, far = socket.socketpair()
        near.close()
        with far:
            command = ["/bin/sh", "-c", f'{close}exec /usr/bin/python3 -IS "$0" "$1"', str(WRAPPER), verb]
            assert subprocess.run(command, stdin=far, capture_output=True, timeout=20).returncode == 1


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def test_clearing_goes_deeper_than_descriptors_or_stack_allow(tmp_path: Path) -> None:
    where = opened(tmp_path)
    here = os.dup(where)
    for _ in range(3000):
        os.mkdir(b"d", dir_fd=here)
        inner = os.open(b"d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    left = clear.clear(where)
    os.close(where)
    assert left.count == 0
    assert list(tmp_path.iterdir()) == []


def test_clearing_stops_in_time(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / str(number)).touch()
    where = opened(tmp_path)
    left = clear.clear(where, limit_s=-1.0)
    os.close(where)
    assert left.count == 1
    assert left.named[0][1] == "out of time"
    assert len(list(tmp_path.iterdir())) == 10


@pytest.mark.needs_root
def test_what_cannot_be_cleared_is_named_once(tmp_path: Path) -> None:
    """Somebody else's directory with something in it, in a directory that the job opened to all."""
    top = tmp_path / "top"
    (top / "open" / "theirs").mkdir(parents=True)
    (top / "open" / "theirs" / "file").touch()
    (top / "mine").touch()
    for path in (top, top / "open", top / "mine"):
        os.chown(path, 12345, 12345)
    tmp_path.chmod(0o755)
    program = f"""
import os, sys
sys.path.insert(0, {str(WRAPPER.parent)!r})
from jobwrapper.clear import clear
where = os.open({str(top)!r}, os.O_RDONLY)
os.setresgid(12345, 12345, 12345); os.setresuid(12345, 12345, 12345)
left = clear(where)
print(left.count, left.named)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1 [(b'theirs', 'Permission denied')]\n"
    assert [str(path.relative_to(top)) for path in sorted(top.rglob("*"))] == [
        "open",
        "open/theirs",
        "open/theirs/file",
    ]
