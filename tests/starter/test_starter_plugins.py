"""File transfer plugins: orders and answers, and real ones at the far side of both calls that stage."""

from __future__ import annotations

import errno
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cedar.classads import get_str
from cedar.filetransfer import StoreFailed
from demo.grid import make_grid
from pilot.calls import own_children
from startd.plugins import read_answer
from starter.plugins import NoPlugin, Order, Plugins, Wish, judge, programs_of, read_ads
from starter.sandbox import Listed, make_place, stage_in, stage_out
from tests.fileserver import FileServer, serving
from tests.jobwrapper.farsides import LIMITS, WRAPPER, once, script, wrapper_context

CURL = WRAPPER / "curl_plugin.py"


def plugins(programs: dict[str, str], sandbox: Path = Path("/sandbox"), limit_s: float = 30) -> Plugins:
    environment = {"PATH": os.environ["PATH"], "WORD": "of the job"}
    return Plugins(programs, str(sandbox), environment, limit_s, "node")


def order(*wishes: Wish, upload: bool = False) -> Order:
    (made,) = plugins({"https": "/p"}).orders(wishes, upload=upload)
    return made


def good(*results: str, status: int = 0) -> dict[str, Any]:
    return {"status": status, "said": "", "result": "\n".join(results)}


X = Wish("x", "https://h/x?sig=s3cret")
OK = '[ TransferSuccess = true; TransferUrl = "https://h/x?sig=s3cret"; TransferTotalBytes = 7 ]'

NO = OK.replace("true", 'false; TransferError = "no such file"')


def test_each_program_gets_its_urls_once() -> None:
    wishes = [Wish("a", "https://h/a"), Wish("b", "tar://b"), Wish("c", 'HTTPS://h/"c"\n')]
    made = plugins({"https": "/p", "tar": "/sandbox/t"}).orders(wishes, upload=False, executable="b")
    assert [(one.program, [wish.name for wish in one.wishes]) for one in made] == [
        ("/p", ["a", "c"]),
        ("/sandbox/t", ["b"]),
    ]
    assert [one.executable for one in made] == ["", "b"]
    read = read_ads(made[0].infile)
    assert [(get_str(ad, "LocalFileName"), get_str(ad, "Url")) for ad in read] == [
        ("/sandbox/a", "https://h/a"), ("/sandbox/c", 'HTTPS://h/"c"\n'),
    ]  # fmt: skip


def test_a_plugin_gets_those_of_the_jobs_variables_that_are_called_after_it() -> None:
    job = {"CURL_TRIES": "1", "curl_x": "2", "CURLY": "3", "PATH": "/mine", "OSDF_X": "4", "_CONDOR_CREDS": "/mine"}
    own = evolve(plugins({"https": "/site/curl_plugin.py", "osdf": "/s/osdf.sh", "x": "/s/_plugin"}), of_job=job)
    made = own.orders([Wish("a", "https://h"), Wish("b", "osdf://h"), Wish("c", "x://h")], upload=False)
    assert [set(one.environment) - {"PATH", "WORD"} for one in made] == [{"CURL_TRIES", "curl_x"}, {"OSDF_X"}, set()]
    assert {one.environment["PATH"] for one in made} == {os.environ["PATH"]}


def test_a_url_that_nobody_can_move_is_refused_without_its_secrets() -> None:
    with pytest.raises(NoPlugin, match=r"gsiftp://h/x: no file transfer plugin.*https") as refused:
        plugins({"https": "/p"}).orders([Wish("x", "gsiftp://h/x?sig=s3cret")], upload=False)
    assert "s3cret" not in str(refused.value)
    assert refused.value.subcode == -1001
    with pytest.raises(NoPlugin, match="1001 URLs, at most 1000") as refused:
        plugins({"https": "/p"}).orders([X] * 1001, upload=False)
    assert refused.value.subcode > -1000


@pytest.mark.parametrize(
    ("answer", "subcode"),
    [({"failed": {"text": "no"}}, errno.ENOEXEC), (good(), errno.EPROTO), (good(status=256), 256), (good(NO), 0)],
)
def test_a_plugin_that_the_job_brings_along_holds_it_where_the_nodes_sends_it_elsewhere(
    answer: Any, subcode: int
) -> None:
    (made,) = plugins({"https": "/sandbox/p"}).orders([X], upload=False)
    judged = judge(made, answer, "node")
    assert judged.failure is not None
    assert judged.failure.hold_subcode == subcode


def test_a_jobs_own_plugin_counts_before_the_sites() -> None:
    from starter.fileplan import FilePlan

    plan = FilePlan(plugins={"https": "tools/mine.py", "tar": "untar"})
    assert programs_of({"https": "/site", "http": "/site"}, plan, "/s") == {
        "https": "/s/mine.py", "http": "/site", "tar": "/s/untar",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "subcode", "words"),
    [
        (good(NO, status=256), 256, "no such file"),
        (good(OK, status=3 << 8), 3 << 8, "exit code 3"),
        (good(NO), 0, "no such file"),
        (good(status=0), -1004, "did not say"),
        (good(status=3 << 8), -1004, "exit code 3"),
        (good("[ nonsense", status=0), -1004, "did not say"),
        (good('[ TransferUrl = "https://h/x?sig=s3cret" ]'), 0, "does not say whether"),
        (good(status=11), 11, "signal 11"),
        (good(OK, status=11), 11, "signal 11"),
        ({"timed_out": True, "said": ""}, 62, "too long"),
        ({"failed": {"text": "Permission denied"}}, -1003, "Permission denied"),
        ({}, -1004, "not known"),
        ("nonsense", -1004, "not known"),
    ],
)  # fmt: skip
def test_what_an_answer_means(answer: Any, subcode: int, words: str) -> None:
    judged = judge(order(X), answer, "node")
    assert judged.failure is not None
    assert (judged.failure.hold_code, judged.failure.hold_subcode) == (12, subcode)
    assert words in judged.failure.reason or words in judged.errors["x"]
    assert "s3cret" not in judged.failure.reason
    assert "s3cret" not in str(judged.ads)
    assert judged.stats == {}


def test_success_is_counted() -> None:
    judged = judge(order(X), good(OK), "node")
    assert (judged.failure, judged.stats) == (None, {"HTTPSFilesCount": 1, "HTTPSSizeBytes": 7})
    assert [ad.get("TransferClass") for ad in judged.ads] == [1, None]
    upload = judge(order(X, upload=True), good(status=1 << 8), "node")
    assert upload.failure is not None
    assert upload.failure.hold_code == 13


@pytest.mark.parametrize("told", ["1e300", "9223372036854775807", 'real("NaN")', 'real("INF")', "-5", '"many"'])
def test_a_plugin_that_tells_absurd_numbers_is_judged_all_the_same(told: str) -> None:
    ads = [OK.replace("7", told), OK.replace("7", told).replace("/x?", "/y?")]
    judged = judge(order(X, Wish("y", "https://h/y?sig=s3cret")), good(*ads), "node")
    assert all(0 <= int(value) < 2**62 for value in judged.stats.values())
    assert len([str(ad) for ad in judged.ads]) == 3


def test_what_a_plugin_says_of_its_tries_goes_on_to_the_jobs_history() -> None:
    tries = (
        """{ [ ErrorType = "Parameter"; ErrorCode = 19; PluginLaunched = false; FailedName = 7; Own = "x";
        DeveloperData = [ Seconds = 0.07; Note = "line\\n"; ClaimId = "s"; Deep = [ a = 1 ]; E = 1 + 1;
            'a = 1; Owner' = "root"; '"""
        + "L" * 129
        + """' = 1 ] ], 5, [ ] }"""
    )
    said = NO.replace(" ]", f"; TransferFileBytes = 3; TransferEndTime = 1 + 1; Own = 5; TransferErrorData = {tries} ]")
    judged = judge(order(X), good(said, status=256), "node")
    result = judged.ads[1]
    assert (result["TransferFileBytes"], result["TransferError"]) == (3, "no such file")
    assert {"Own", "TransferEndTime"}.isdisjoint(result)
    first, second = result["TransferErrorData"]
    assert dict(first["DeveloperData"]) == {"Note": "line?", "Seconds": 0.07}
    assert {name: first[name] for name in first if name != "DeveloperData"} == {
        "ErrorType": "Parameter", "ErrorCode": 19, "PluginLaunched": False,
    }  # fmt: skip
    assert dict(second) == {}


def test_a_plugin_may_not_say_too_much() -> None:
    one = (
        '[ ErrorString = "'
        + "x" * 3000
        + '"; DeveloperData = [ '
        + "; ".join(f"A{i} = {i}" for i in range(50))
        + " ] ]"
    )
    said = NO.replace(" ]", f"; TransferErrorData = {{ {', '.join([one] * 12)} }} ]")
    tries = judge(order(X), good(said, status=256), "node").ads[1]["TransferErrorData"]
    assert [(len(each["ErrorString"]), len(each["DeveloperData"])) for each in tries] == [(512, 16)] * 8


def test_names_may_have_any_byte() -> None:
    r"""The library ends the process over what is no text."""
    name, program = b'out \xff\xfe "\\\n'.decode("utf-8", "surrogateescape"), "/s/p\udc80"
    (made,) = plugins({"a+b": program}).orders([Wish(name, "a+b://h/\udcff")], upload=True)
    assert made.infile == '[ LocalFileName = "/sandbox/out \\377\\376 \\"\\\\\\012"; Url = "a+b://h/\\377" ]\n'
    assert len(read_ads(made.infile)) == 1
    judged = judge(made, good("[ TransferSuccess = true; TransferTotalBytes = 1 ]"), "node")
    assert judged.stats == {"A_BFilesCount": 1, "A_BSizeBytes": 1}
    assert "\udc80" not in str(judged.ads)


def test_an_answer_that_is_no_text_is_judged_all_the_same() -> None:
    judged = judge(
        order(X), good(r'[ TransferSuccess = true; TransferUrl = "\377"; TransferError = "\200\n" ]'), "node"
    )
    assert len(judged.ads) == 2


@given(st.text(max_size=300))
def test_any_text_may_come_back(text: str) -> None:
    judged = judge(order(X), {"status": 0, "result": text, "said": text}, "node")
    assert judged.failure is not None


def test_what_a_plugin_says_of_itself() -> None:
    said = b'MultipleFileSupport = true\nSupportedMethods = "http, HTTPS"\nPluginType = "FileTransfer"\n'
    assert read_answer("/p", 0, said) == {"http": "/p", "https": "/p"}
    with pytest.raises(ValueError, match="multi-file"):
        read_answer("/p", 0, said.replace(b"true", b"false"))
    with pytest.raises(ValueError, match="exit status 1"):
        read_answer("/p", 1, said)


# -- real ones ------------------------------------------------------------------------------------------------------

PLUGIN = """
    [ "$1 $3" = "-infile -outfile" ] || exit 100
    case $(cat "$2") in *fail*) echo "[ TransferSuccess = false; TransferError = \\"as asked\\" ]" >"$4"; exit 1;; esac
    name=$(sed -n 's/.*LocalFileName = "\\([^"]*\\)".*/\\1/p' "$2")
    [ "$5" = -upload ] && cp "$name" "$name.sent" || printf '%s %s' "$(pwd)" "$WORD" >"$name"
    echo "[ TransferSuccess = true; TransferUrl = \\"$(sed -n 's/.*Url = "\\([^"]*\\)".*/\\1/p' "$2")\\" ]" >"$4"
"""


async def test_a_plugin_fetches_into_the_sandbox(tmp_path: Path) -> None:
    program = script(tmp_path / "plugin", PLUGIN)
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        await inward.file("first", 0o644, 1, once(b"x"))
        (asked,) = plugins({"t": str(program)}, place.path).orders(
            [Wish("got", "t://x")], upload=False, executable="got"
        )
        judged = judge(asked, await inward.run_plugin(asked), "node")
        await inward.file("last", 0o644, 1, once(b"y"))
        await inward.finish()
    assert judged.failure is None
    assert (place.path / "got").read_text() == f"{place.path} of the job"
    assert os.access(place.path / "got", os.X_OK)
    assert sorted(path.name for path in place.path.iterdir()) == ["first", "got", "last"]


async def test_a_plugin_sends_out_of_the_sandbox(tmp_path: Path) -> None:
    program = script(tmp_path / "plugin", PLUGIN)
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        for name in ("dir/a", "b"):
            await inward.file(name, 0o644, 1, once(name.encode()[:1]))
        await inward.finish()
    seen: list[Any] = []

    class Wanted:
        def orders(self, manifest: Any) -> list[Order]:
            assert [entry.name for entry in manifest.entries] == ["dir", "dir/a", "b"]
            return plugins({"t": str(program)}, place.path).orders([Wish("dir/a", "t://x/a")], upload=True)

        def answered(self, order: Order, answer: Any) -> None:
            seen.append(judge(order, answer, "node"))

    names = Listed(("dir", "b"))
    async with stage_out(wrapper_context(), place, names, limits=LIMITS, deadline_s=60, uploads=Wanted()) as outward:
        assert [entry.name for entry in outward.manifest.entries] == ["dir", "dir/a.sent", "b"]
        await outward.again()
        assert "dir/a" not in [entry.name for entry in outward.manifest.entries]
    assert [one.failure for one in seen] == [None]


@pytest.mark.parametrize("program", ["fail", "missing", "slow"])
async def test_a_plugin_that_does_not_do_it(tmp_path: Path, program: str) -> None:
    path = tmp_path / "plugin"
    if program != "missing":
        script(path, PLUGIN if program == "fail" else "sleep 1000 & sleep 1000")
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        wishes = [Wish("x", f"t://{program}")]
        (asked,) = plugins({"t": str(path)}, place.path, 0.2 if program == "slow" else 20).orders(wishes, upload=False)
        judged = judge(asked, await inward.run_plugin(asked), "node")
        await inward.finish()
    assert judged.failure is not None
    words = {"fail": "as asked", "missing": "No such file", "slow": "too long"}[program]
    assert words in judged.failure.reason
    assert own_children() == frozenset()


async def test_a_plugin_ends_with_its_call(tmp_path: Path) -> None:
    program = script(tmp_path / "plugin", "echo $$ >pid; exec sleep 1000")
    place = make_place(tmp_path)
    begun_s = trio.current_time()
    with trio.CancelScope() as scope:
        async with stage_in(wrapper_context(), place, deadline_s=60) as inward, trio.open_nursery() as nursery:

            async def stop() -> None:
                while not (place.path / "pid").exists() or not (place.path / "pid").read_text():  # noqa: ASYNC110
                    await trio.sleep(0.01)
                stopped.append(int((place.path / "pid").read_text()))
                scope.cancel()

            stopped: list[int] = []
            nursery.start_soon(stop)
            (asked,) = plugins({"t": str(program)}, place.path).orders([Wish("x", "t://x")], upload=False)
            await inward.run_plugin(asked)
    with pytest.raises(ProcessLookupError):
        os.kill(stopped[0], 0)
    assert trio.current_time() - begun_s < 20, "it was not ended by its far side, but by the end of its call's patience"
    assert not place.path.exists() or list(place.path.iterdir()) == []


async def test_a_plugin_can_be_terminated(tmp_path: Path) -> None:
    """What started it cannot."""
    program = script(tmp_path / "plugin", "kill -TERM $$; sleep 1000")
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        (asked,) = plugins({"t": str(program)}, place.path).orders([Wish("x", "t://x")], upload=False)
        judged = judge(asked, await inward.run_plugin(asked), "node")
        await inward.finish()
    assert judged.failure is not None
    assert "signal 15" in judged.failure.reason


async def test_nothing_is_fetched_after_something_could_not_be_stored(tmp_path: Path) -> None:
    program = script(tmp_path / "plugin", "touch ran; exit 0")
    place = make_place(tmp_path)
    async with stage_in(wrapper_context(), place, deadline_s=60) as inward:
        await inward.directory("x", 0o755)
        await inward.file("x", 0o644, 1, once(b"x"))
        (asked,) = plugins({"t": str(program)}, place.path).orders([Wish("y", "t://x")], upload=False)
        with pytest.raises(StoreFailed):
            await inward.run_plugin(asked)


# -- curl -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[FileServer]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with serving() as made:
        yield made


def curl(tmp_path: Path, url: str, name: str, *options: str, **more: str) -> tuple[int, list[Any]]:
    (asked,) = plugins({url.split("://")[0].lower(): str(CURL)}, tmp_path).orders(
        [Wish(name, url)], upload=bool(options)
    )
    (tmp_path / "in").write_text(asked.infile)
    environment = {"PATH": os.environ["PATH"], "_CONDOR_CREDS": str(tmp_path), **more}
    command = ["/usr/bin/python3", "-IS", str(CURL), "-infile", "in", "-outfile", "out", *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    judged = judge(
        asked, {"status": done.returncode << 8, "said": "", "result": (tmp_path / "out").read_text()}, "node"
    )
    return done.returncode, [judged]


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
def test_curl_fetches_and_sends(tmp_path: Path, server: FileServer) -> None:
    data = os.urandom(100_000)
    server.kept["/a b?sig=[1]"] = server.kept["/private"] = data
    server.kept["/a%20b?sig=[1]"] = data
    status, (judged,) = curl(tmp_path, f"{server.url}/a%20b?sig=[1]", "got it")
    assert (status, judged.failure) == (0, None)
    assert (tmp_path / "got it").read_bytes() == data
    assert judged.stats == {"HTTPFilesCount": 1, "HTTPSizeBytes": len(data)}
    status, (judged,) = curl(tmp_path, f"{server.url}/put", "got it", "-upload")
    assert (status, judged.failure, server.kept["/put"]) == (0, None, data)


@needs_curl
def test_curl_takes_the_jobs_token_and_says_why_not(tmp_path: Path, server: FileServer) -> None:
    server.kept["/private"] = b"secret"
    _, (judged,) = curl(tmp_path, f"{server.url}/private", "x")
    assert judged.failure is not None
    assert "the server refused" in judged.failure.reason
    (tmp_path / "tok.use").write_text("s3cret\n")
    status, _ = curl(tmp_path, f"tok+{server.url}/private", "x")
    assert (status, (tmp_path / "x").read_bytes()) == (0, b"secret")
    _, (judged,) = curl(tmp_path, "http://127.0.0.1:1/x", "x")
    assert "does not answer" in judged.failure.reason  # type: ignore[union-attr]


@needs_curl
def test_curl_reads_and_writes_files_of_the_node_but_follows_nobody_there(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "here").write_text("data")
    status, (judged,) = curl(tmp_path, f"file://{tmp_path}/here", "got")
    assert (status, (tmp_path / "got").read_text()) == (0, "data")
    assert judged.stats == {"FILEFilesCount": 1, "FILESizeBytes": 4}
    status, _ = curl(tmp_path, f"file://{tmp_path}/sent", "got", "-upload")
    assert (status, (tmp_path / "sent").read_text()) == (0, "data")
    _, (judged,) = curl(tmp_path, f"file://{tmp_path}/none", "x")
    assert "the file cannot be read" in judged.failure.reason
    server.moved["/away"] = f"file://{tmp_path}/here"
    status, _ = curl(tmp_path, f"{server.url}/away", "stolen")
    assert status == 1
    assert not (tmp_path / "stolen").exists()


@needs_curl
def test_curl_trusts_whom_the_site_trusts(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    (tmp_path / "host.pem").write_bytes(grid.host("localhost").pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "host.pem")
    with serving(tls) as server:
        server.kept["/x"] = b"data"
        _, (judged,) = curl(tmp_path, f"{server.url}/x", "x")
        assert "certificate is not trusted" in judged.failure.reason
        ca = next(grid.certificates_dir.glob("*.0"))
        status, (judged,) = curl(tmp_path, f"{server.url}/x", "x", CURL_CA_BUNDLE=str(ca))
        assert (status, judged.failure, judged.stats) == (0, None, {"HTTPSFilesCount": 1, "HTTPSSizeBytes": 4})
        status, _ = curl(tmp_path, f"{server.url}/y", "x", "-upload", CURL_CA_BUNDLE=str(ca))
        assert (status, server.kept["/y"]) == (0, b"data")


def test_curl_speaks_of_itself() -> None:
    done = subprocess.run(["/usr/bin/python3", "-IS", str(CURL), "-classad"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("curl is not installed")
    assert read_answer(str(CURL), 0, done.stdout) == dict.fromkeys(("http", "https", "file"), str(CURL))
