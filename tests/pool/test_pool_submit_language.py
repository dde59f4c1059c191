"""The submit language: jobs out of a file, and words about what is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cedar import classads
from pool import submit_language as language
from pool.jobad import accept


def plan(tmp_path: Path, text: str, **environ: str) -> language.Plan:
    path = tmp_path / "job.sub"
    path.write_text(text)
    return language.read(path, environ, 1234)


def ads(tmp_path: Path, text: str, cluster: int = 5) -> list[str]:
    return list(language.ads(plan(tmp_path, text), cluster))


def value(text: str, name: str) -> str:
    found: str = classads.get_str(classads.parse_old(text), name)
    return found


def test_a_queue_of_many(tmp_path: Path) -> None:
    found = ads(tmp_path, "executable = /bin/echo\narguments = \"$(Process) $(ClusterId) 'a b'\"\nqueue 3\n")
    assert [value(ad, "Arguments") for ad in found] == ["0 5 a' 'b", "1 5 a' 'b", "2 5 a' 'b"]
    for ad in found:
        accept(ad)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("queue x in (a b)", ["a", "b"]),
        ("queue 2 x in (a b)", ["a", "a", "b", "b"]),
        ("queue x from (\na\nb c\n)", ["a", "b c"]),
        ("queue", ["$(x)"]),
    ],
)
def test_queue_statements(tmp_path: Path, statement: str, expected: list[str]) -> None:
    text = f"executable = /bin/echo\noutput = o.$(x)\n{statement}\n"
    if statement == "queue":
        text = text.replace("$(x)", "$$(x)").replace("$$", "$")
        expected = [""]
    assert [value(ad, "Out") for ad in ads(tmp_path, text)] == [f"o.{each}" for each in expected]


def test_own_attributes_and_continued_lines(tmp_path: Path) -> None:
    (ad,) = ads(tmp_path, '# a comment\nexecutable = \\\n  /bin/echo\n+Mine = "x"\nMY.Other = 7\n\nqueue\n')
    assert value(ad, "Mine") == "x"
    assert value(ad, "Cmd").endswith("/bin/echo")
    assert classads.get_int(classads.parse_old(ad), "Other") == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("executable = /bin/echo\nfrobnicate\nqueue\n", "line 2: 'frobnicate' is neither"),
        ("executable = /bin/echo\n", "no 'queue' statement"),
        ("executable = /bin/echo\nqueue\narguments = 2\nqueue\n", "line 4: a second 'queue'"),
        ("queue\n", "executable"),
        ("executable = /bin/echo\nrequirements = ( Foo\nqueue\n", "Requirements"),
        ("executable = /bin/echo\nuniverse = docker\nqueue\n", "universe = docker"),
        ("executable = /bin/echo\nshould_transfer_files = NO\nqueue\n", "should_transfer_files = NO"),
        ('executable = /bin/echo\n+Owner = "root"\nqueue\n', r"line 2: \+Owner is set by the pool only"),
        ("executable = /bin/echo\nMY.ClusterId = 1\nqueue\n", "set by the pool only"),
        ("executable = /bin/echo\nqueue 0\n", "makes no job"),
        ("executable = /bin/echo\nperiodic_hold = true\nqueue\n", "periodic_hold: this pool does not act on it"),
        ("executable = /bin/echo\nhold = true\nqueue\n", "hold: this pool does not act on it"),
    ],
)
def test_words_about_mistakes(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(language.SubmitError, match=words):
        ads(tmp_path, text)


def test_too_many_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "MAX_JOBS", 10)
    assert len(ads(tmp_path, "executable = /bin/echo\nqueue 10\n")) == 10
    with pytest.raises(language.SubmitError, match="more than 10 jobs"):
        ads(tmp_path, "executable = /bin/echo\nqueue 11\n")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(language.SubmitError, match=r"cannot read the submit file .*No such file"):
        language.read(tmp_path / "none", {}, 0)


@pytest.mark.parametrize(
    ("line", "environ", "expected"),
    [
        ("x509userproxy = /tmp/px", {}, "/tmp/px"),
        ("use_x509userproxy = true", {"X509_USER_PROXY": "/e/px"}, "/e/px"),
        ("use_x509userproxy = true", {}, "/tmp/x509up_u1234"),
        ("use_x509userproxy = false", {"X509_USER_PROXY": "/e/px"}, None),
        ("", {"X509_USER_PROXY": "/e/px"}, None),
    ],
)
def test_which_proxy_is_meant(tmp_path: Path, line: str, environ: dict[str, str], expected: str | None) -> None:
    found = plan(tmp_path, f"executable = /bin/echo\n{line}\nqueue\n", **environ)
    assert found.proxy == expected
    for ad in language.ads(found, 1):
        assert "x509" not in ad.lower()


def test_custom_resources_and_gpus_are_asked_for_by_the_submit_language(tmp_path: Path) -> None:
    text = "executable = /bin/echo\nrequest_gpus = 1\nrequire_gpus = Capability >= 7\nrequest_licenses = 2\nqueue\n"
    (said,) = ads(tmp_path, text)
    accept(said)
    job = classads.parse_old(said + 'ImageSize = 1\nDiskUsage = 1\nFileSystemDomain = "x"\n')
    assert (classads.get_int(job, "RequestGPUs"), classads.get_int(job, "RequestLicenses")) == (1, 2)
    slot = (
        'Arch = "X86_64"\nOpSys = "LINUX"\nMemory = 9\nDisk = 9\nHasFileTransfer = true\nGPUs = 1\nLicenses = 2\n'
        "AvailableGPUs = {{ GPUs_a }}\nGPUs_a = [ Capability = {} ]\n"
    )
    assert classads.matches(job, classads.parse_old(slot.format(7.5)))
    assert not classads.matches(job, classads.parse_old(slot.format(6.1)))
    assert not classads.matches(job, classads.parse_old(slot.format(7.5).replace("Licenses = 2", "Licenses = 1")))
