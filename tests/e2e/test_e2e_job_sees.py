"""What a job sees, end to end: its environment in spite of the pilot's, commands around it, chirp, tokens, the site's
wrapper. Through the embedded pool and a real switch."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from demo.site import Site
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]

# What a batch system, a glidein or a user may have left in the pilot's environment.
TRAPS = {
    "LD_PRELOAD": "/no/such/trap.so",
    "LD_LIBRARY_PATH": "/no/such/trap",
    "MALLOC_CHECK_": "3",
    "PYTHON_EGG_CACHE": "/no/such/trap-eggs",
    "PYTHONPATH": "/no/such/trap-python",
    "TMPDIR": "/no/such/trap-tmp",
    "GLEXEC_TRAP": "trap",
    "CONDOR_CONFIG": "/no/such/trap-config",
    "BASH_ENV": "/no/such/trap-bash",
    "ENV": "/no/such/trap-sh",
    "SSH_AUTH_SOCK": "/no/such/trap-agent",
    "OMP_NUM_THREADS": "97",
}
SITES = '"SITE_IS=here"'


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    """A pilot in whose environment every trap is set."""
    with Site.open("test") as site:
        tokens = site.layout.root / "tokens"
        tokens.mkdir(mode=0o711)
        site.start_pool(SEC_CREDENTIAL_DIRECTORY_OAUTH=tokens)
        plain = site.runtime
        site.runtime = attrs.evolve(plain, environment={**plain.environment, **TRAPS})
        knobs = {"SEC_CREDENTIAL_REFRESH": 1, "JOB_RENICE_INCREMENT": "3 + 2", "STARTER_JOB_ENVIRONMENT": SITES}
        umask = os.umask(0o077)  # as some batch systems start their jobs
        try:
            site.start_startd(**STARTD_KNOBS, **knobs)
        finally:
            os.umask(umask)
        site.runtime = plain
        yield Jobs(site)
        site.stop()
        assert site.left == []


def environment_of(text: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in text.splitlines())


def test_nothing_of_the_pilots_environment_reaches_a_job(jobs: Jobs) -> None:
    found = environment_of(jobs.output("alice", "/usr/bin/env", environment='"MINE=1"'))
    startd = jobs.site.startd
    assert startd is not None
    pilots = environment_of(Path(f"/proc/{startd.pid}/environ").read_text().replace("\0", "\n"))
    assert set(TRAPS) <= set(pilots), "the pilot was not started with the traps"
    assert not {value for value in found.values() if "trap" in value}
    assert not set(TRAPS) & set(found) - {"TMPDIR", "OMP_NUM_THREADS"}
    account = jobs.site.accounts["alice"].name
    assert (found["USER"], found["LOGNAME"], found["SHELL"]) == (account, account, "/bin/sh")
    assert found["HOME"] == found["TMPDIR"] == found["_CONDOR_SCRATCH_DIR"] == found["PWD"]
    assert found["PATH"] == "/usr/local/bin:/usr/bin:/bin"
    assert (found["OMP_NUM_THREADS"], found["SITE_IS"], found["MINE"]) == ("1", "here", "1")
    assert found["X509_USER_PROXY"] == found["HOME"] + "/" + os.path.basename(jobs.user("alice").proxy)


@pytest.mark.parametrize("name", ["LD_PRELOAD", pytest.param("MALLOC_CHECK_", marks=pytest.mark.slow)])
def test_traps_that_a_job_sets_are_its_own_and_nobody_elses(jobs: Jobs, name: str) -> None:
    """They reach the job's program, and neither the switch nor the wrapper."""
    text = jobs.output("alice", f'echo "${name}"', environment=f'"{name}=/no/such/own.so"')
    assert text.split() == ["/no/such/own.so"]
    assert "own.so" not in jobs.log("StarterLog")


def test_limits_niceness_umask_and_descriptors(jobs: Jobs) -> None:
    script = (
        "umask; nice; ulimit -c; ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj; grep SigIgn /proc/self/status"
    )
    words = jobs.output("alice", script).split()
    assert words[:3] == ["0022", "5", "0"]
    assert int(words[3]) == 4  # the three, and the listing's own
    assert words[4] == "800"
    assert int(words[6], 16) & ~(3 << 31) == 0  # 32 and 33 are the C library's, and nobody can change them


def test_a_stream_may_go_to_a_directory_that_is_not_there_yet(jobs: Jobs) -> None:
    job = jobs.submit("alice", "echo out; echo err >&2", output="logs/deep/out", error="logs/err")
    jobs.done(job)
    fetched = jobs.fetch("alice", job)
    assert {name: data for name, data in fetched.items() if data} == {"logs/deep/out": b"out\n", "logs/err": b"err\n"}


def test_the_ads_are_there_and_do_not_come_back(jobs: Jobs) -> None:
    script = (
        "until grep -q JobState .update.ad; do sleep 0.05; done; cat $_CONDOR_JOB_AD $_CONDOR_MACHINE_AD .update.ad"
    )
    job = jobs.submit("alice", script)
    jobs.done(job)
    fetched = jobs.fetch("alice", job)
    assert set(fetched) == {"out", "err"}
    text = fetched["out"].decode()
    for line in (f"ClusterId = {job.split('.')[0]}", 'JobState = "Running"', "Cpus = 1"):
        assert line in text
    for secret in ("TransferKey", "ClaimId", "Capability"):
        assert f"\n{secret}" not in text
    assert len(jobs.calls(job)) == 3


def test_words_are_filled_in_from_the_slot(jobs: Jobs) -> None:
    more = {"arguments": "$$(Cpus) $$(CondorScratchDir)/x $$(Nothing:else)", "environment": '"W=$$(CondorScratchDir)"'}
    cpus, path, default, word, here = jobs.output("alice", "echo $1 $2 $3 $W $PWD", **more).split()
    assert (cpus, path, default, word) == ("1", f"{here}/x", "else", here)


def test_a_container_is_refused_with_a_reason_where_one_comes_all_the_same(jobs: Jobs) -> None:
    job = jobs.submit("alice", "exit 0", **{"+SingularityImage": '"/cvmfs/image.sif"'})
    row = jobs.wait_for(job, "held", "completed")
    assert row["hold_code"] == 35
    assert "SingularityImage" in row["reason"]
    assert not jobs.calls(job)
    jobs.remove("alice", job)


# -- chirp ----------------------------------------------------------------------------------------------------------

CLIENT = """
import os, sys
os.environ["CONDOR_CONFIG"] = os.devnull
import warnings; warnings.simplefilter("ignore")
sys.path[:0] = {path!r}
from htcondor.htchirp import HTChirp
with HTChirp() as chirp:
    print(chirp.get_job_attr("Owner"))
    chirp.set_job_attr("Progress", "1+1")
    print(chirp.get_job_attr("Progress"))
    chirp.set_job_attr_delayed("ChirpDone", '"yes"')
    print(chirp.get_job_attr_delayed("ChirpDone"))
    chirp.ulog("half way")
    chirp.put("large", "back")
    chirp.fetch("in.txt", "again")
    print(open("again").read())
    print(chirp.read("back", 4, offset=2))
    for refused in ("/etc/passwd", "../x", "a/b"):
        try: chirp.fetch(refused, "never")
        except HTChirp.ChirpError as error: print(type(error).__name__)
    try: chirp.set_job_attr("Owner", '"root"')
    except HTChirp.ChirpError as error: print(type(error).__name__)
"""


def test_a_job_by_chirp_with_the_wheels_client(jobs: Jobs, tmp_path: Path) -> None:
    wheel = next(path for path in sys.path if os.path.isdir(os.path.join(path, "htcondor")))
    # The job's account cannot read this checkout's environment: the client's two files go with the job.
    site, user = jobs.site, jobs.user("alice")
    source = (Path(wheel) / "htcondor/htchirp/htchirp.py").read_bytes()
    site.put(user, "htchirp.py", source)
    site.put(user, "client.py", CLIENT.format(path=["."]).replace("htcondor.htchirp", "htchirp").encode())
    site.put(user, "in.txt", b"input\n")
    script = "printf 0123456789 > large; ls -l .chirp.config | cut -c1-10; /usr/bin/python3 client.py"
    job = jobs.submit("alice", script, transfer_input_files="htchirp.py, client.py, in.txt", **{"+WantIOProxy": "true"})
    jobs.done(job)
    fetched = jobs.fetch("alice", job)
    owner = jobs.rows()[job]["owner"]
    assert fetched["out"].decode().splitlines() == [
        "-rw-------", f'"{owner}"', "1 + 1", '"yes"', "input", "", "b'2345'", "NotAuthorized", "NotAuthorized",
        "NotAuthorized", "NotAuthorized",
    ], fetched["err"]  # fmt: skip
    assert fetched["back"] == b"0123456789"
    cluster, proc = map(int, job.split("."))
    database = sqlite3.connect(f"file:{next(site.layout.root.rglob('queue.sqlite'))}?mode=ro", uri=True)
    (ad,) = database.execute("SELECT ad FROM jobs WHERE cluster = ? AND proc = ?", (cluster, proc)).fetchone()
    database.close()
    assert "\nProgress = 1+1\n" in ad.decode()
    assert "htchirp.py" not in fetched
    assert len(jobs.calls(job)) == 3


INTRUDER = """
import socket, sys
for path in sys.argv[2:]:
    try: print(open(path).read())
    except OSError as error: print(error.strerror)
line = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
line.sendall(b"cookie guessed\\nget_job_attr Owner\\n")
print(line.recv(100))
"""


def test_another_user_reaches_neither_a_jobs_chirp_nor_its_secrets(jobs: Jobs) -> None:
    site, layout = jobs.site, jobs.site.layout
    give_token(jobs, site.accounts["alice"].name, "mine", "s3cret")
    wanted = {"+WantIOProxy": "true", "+OAuthServicesNeeded": '"mine"'}
    job = jobs.submit("alice", "touch ready; until test -e over; do sleep 0.05; done", **wanted)
    (ready,) = jobs.until("alice's job to run", lambda: list(layout.execute.glob("*/s/*/ready")))
    sandbox = ready.parent
    port = (sandbox / ".chirp.config").read_text().split()[1]
    site.put(jobs.user("bob"), "intruder.py", INTRUDER.encode())
    arguments = f"{port} {sandbox}/.chirp.config {sandbox}/.condor_creds/mine.use {sandbox}/.job.ad"
    script = '/usr/bin/python3 intruder.py "$@"'
    said = jobs.output("bob", script, transfer_input_files="intruder.py", arguments=arguments)
    assert said.splitlines() == ["Permission denied"] * 3 + ["b'-1\\n'"]
    (sandbox / "over").touch()
    jobs.done(job)


# -- tokens ---------------------------------------------------------------------------------------------------------


def give_token(jobs: Jobs, owner: str, service: str, text: str) -> None:
    """As a credential monitor does: written beside, and moved into place."""
    pool = jobs.site.accounts["pool"]
    directory = jobs.site.layout.root / "tokens" / owner
    directory.mkdir(exist_ok=True)
    os.chown(directory, pool.uid, pool.gid)
    fresh = directory / "fresh"
    fresh.write_text(text)
    fresh.chmod(0o600)
    os.chown(fresh, pool.uid, pool.gid)
    fresh.rename(directory / f"{service}.use")


def test_tokens_are_the_jobs_alone_and_are_renewed_while_it_runs(jobs: Jobs) -> None:
    owner = jobs.site.accounts["alice"].name
    give_token(jobs, owner, "box", "first-s3cret")
    script = (
        "stat -c '%a %U' $_CONDOR_CREDS $_CONDOR_CREDS/box.use; cat $_CONDOR_CREDS/box.use; echo; touch ready;"
        " cd $_CONDOR_CREDS; until grep -q second box.use; do sleep 0.05; done; cat box.use; ls -A"
    )
    job = jobs.submit("alice", script, use_oauth_services="box")
    jobs.until("the job to have its token", lambda: list(jobs.site.layout.execute.glob("*/s/*/ready")))
    give_token(jobs, owner, "box", "second-s3cret")
    jobs.done(job)
    lines = jobs.fetch("alice", job)["out"].decode().splitlines()
    assert lines == [f"700 {owner}", f"600 {owner}", "first-s3cret", "second-s3cretbox.use"]
    assert len(jobs.calls(job)) == 4  # the three, and one for the renewal
    for log in ("StarterLog", "StartLog"):
        assert "s3cret" not in jobs.log(log)


# -- the site's wrapper ---------------------------------------------------------------------------------------------

# As glideinWMS's: looks whether the job wants a container, and if so starts it by Apptainer; here by a stand-in.
WRAPPER = """#!/bin/sh
image=$(sed -n 's/^MyImage = "\\(.*\\)"$/\\1/p' "$_CONDOR_JOB_AD")
case $image in
    "") exec "$@" ;;
    broken) echo "no such image: $image" > "$_CONDOR_WRAPPER_ERROR_FILE"; exit 1 ;;
esac
export APPTAINER_CONTAINER="$image"
exec {apptainer} exec --pwd "$PWD" "$image" "$@"
"""
APPTAINER = """#!/bin/sh
echo "apptainer $2 $3 of $APPTAINER_CONTAINER as $(id -u)" | sed "s|$PWD|HERE|"
shift 4
exec "$@"
"""


def test_a_wrapper_of_the_site_starts_containers_at_the_jobs_account() -> None:
    with Site.open("test") as site:
        node = site.layout.root / "node"
        node.mkdir(mode=0o755)
        for name, text in (("wrapper", WRAPPER), ("apptainer", APPTAINER)):
            (node / name).write_text(text.replace("{apptainer}", str(node / "apptainer")))
            (node / name).chmod(0o755)
        site.start_pool()
        site.start_startd(**STARTD_KNOBS, USER_JOB_WRAPPER=node / "wrapper", ASSIGN_CPU_AFFINITY="True")
        jobs = Jobs(site)
        uid = str(site.accounts["alice"].uid)
        assert jobs.output("alice", "echo $1", arguments="plain").split() == ["plain"]
        text = jobs.output("alice", "echo $1; exit 0", arguments="inside", **{"+MyImage": '"/cvmfs/x.sif"'})
        assert text.splitlines() == [f"apptainer --pwd HERE of /cvmfs/x.sif as {uid}", "inside"]
        cores = jobs.output("alice", "grep Cpus_allowed_list /proc/self/status").split()[1]
        assert cores.isdigit()
        broken = jobs.submit("alice", "exit 0", **{"+MyImage": '"broken"'})
        jobs.until("the wrapper's word", lambda: "no such image: broken" in jobs.log("StartLog"))
        jobs.wait_for(broken, "idle")
        jobs.remove("alice", broken)
        jobs.until_nothing_is_left_of("alice")
        site.stop()
        assert site.left == []
