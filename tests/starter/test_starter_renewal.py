"""Renewed proxies: what takes the old one's place and what never does, in every phase, and when things fail."""

from __future__ import annotations

import logging
import math
import os
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from classad2 import ClassAd
from cryptography.hazmat.primitives import serialization

from cedar import delegation
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from demo.grid import Certified, Grid, make_grid, make_proxy
from demo.grid_voms import voms_extension
from jobwrapper import replace_proxy
from pilot import audit, credentials
from pilot.ledger import identity_of
from starter import asking, renewal
from starter.credential import Keys, Trust, check_proxy
from starter.description import describe
from starter.events import CredentialStored, Event, IdentityChanged, StepFailed
from starter.life import State
from starter.messages import PassedCommand
from starter.renewal import Kept, Renewals, Renewed, judge
from starter.sandbox import Context, Place
from starter.verdict import Hold, Requeue
from starter.work import Work
from tests.jobwrapper.farsides import Settings, wrapper_context
from tests.starter.test_starter_peek import connection

LOG = logging.LoggerAdapter(logging.getLogger("test"), {})
HOUR_S = 3600.0
VOMS_HOST = "voms.example.org"


@attrs.define
class Site:
    """A grid, a user with a role, and the VOMS server that vouches for it."""

    grid: Grid
    alice: Certified
    server: Certified
    trust: Trust

    def proxy(self, hours: float, *, owner: Certified | None = None, fqan: str = "/demo/Role=pilot") -> bytes:
        owner = owner or self.alice
        extensions = [voms_extension(owner, self.server, [fqan], lifetime_s=hours * HOUR_S)] if fqan else []
        return make_proxy(owner, lifetime_s=hours * HOUR_S, extensions=extensions).pem


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("site")
    grid = make_grid(directory)
    alice, server = grid.user("Alice Adams"), grid.host(VOMS_HOST)
    lsc = directory / "vomsdir" / "demo" / f"{VOMS_HOST}.lsc"
    lsc.parent.mkdir(parents=True)
    (lsc.parent / "server.pem").write_bytes(server.pem)
    return Site(grid, alice, server, Trust(grid.certificates_dir, directory / "vomsdir"))


class Job:
    """A job with a proxy that ends in an hour, in a sandbox of the real wrapper's."""

    def __init__(self, site: Site, place: Place, directory: Path, policy: str = "keep") -> None:
        self.site, self.place, self.state = site, place, State.RUNNING
        self.events: list[Event] = []
        ad = {"ClusterId": 1, "ProcId": 0, "Cmd": "/x", "x509userproxy": "/home/alice/proxy", "User": "alice@x"}
        description = describe(ClassAd({**ad, "x509userproxysubject": site.alice.identity}))
        self.pilots_file = directory / "private" / "proxy.pem"
        self.pilots_file.parent.mkdir(mode=0o700)
        (directory / "log").mkdir()
        pem = site.proxy(1)
        credentials.store_private(self.pilots_file, pem)
        (place.path / "proxy").write_bytes(pem)
        settings = SimpleNamespace(
            sailplane_switch_deadline=10.0, sailplane_on_identity_change=policy, log=directory / "log"
        )
        self.work = SimpleNamespace(
            description=description, settings=settings, place=place, trust=site.trust, keys=Keys(),
            credential=check_proxy(pem, description, site.trust), credential_path=self.pilots_file,
            proxy_in_sandbox=True, proxy_copied=False, context=self.context, shadow=SimpleNamespace(),
        )  # fmt: skip
        self.contexts: list[Context] = []
        self.renewals = Renewals(cast(Work, self.work), lambda: self.state, self.tell, LOG)

    def context(self, **patience: bool) -> Context:
        self.contexts.append(wrapper_context())
        return self.contexts[-1]

    async def tell(self, event: Event) -> None:
        self.events.append(event)

    async def push(self, source: bytes) -> int | None:
        """As a shadow does: the answer, or None when the connection ended without one."""
        async with connection() as (fd, state, peer), trio.open_nursery() as nursery:
            message = PassedCommand(Command.DELEGATE_GSI_CRED_STARTER, "", "", state)
            nursery.start_soon(self.renewals.serve, message, fd)
            with trio.fail_after(60):
                try:
                    await delegation.give(peer.stream, signer(source))
                    return (await peer.get()).int()
                except (PeerFault, Refused, credentials.CredentialError):
                    return None

    @asynccontextmanager
    async def kept_up_to_date(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await self.renewals.known()
            nursery.start_soon(self.renewals.run)
            yield
            nursery.cancel_scope.cancel()

    def in_sandbox(self) -> bytes:
        return (self.place.path / "proxy").read_bytes()

    def on_disk(self) -> bytes:
        return self.pilots_file.read_bytes()

    def audited(self) -> list[str]:
        path = self.work.settings.log / "AuditLog"
        return [record["event"] for record in audit.read(path)] if path.exists() else []


def signer(source: bytes) -> Callable[[bytes], Any]:
    async def sign(request: bytes) -> bytes:
        return credentials.sign_request(source, request, not_after=None)

    return sign


def without_key(pem: bytes) -> bytes:
    begin, end = pem.index(b"-----BEGIN PRIVATE KEY"), pem.index(b"-----END PRIVATE KEY-----\n") + 25
    return pem[:begin] + pem[end:].lstrip()


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not true():  # noqa: ASYNC110 - a file, written by a process
            await trio.sleep(0.01)


@pytest.fixture
def job(site: Site, place: Place, tmp_path: Path) -> Job:
    return Job(site, place, tmp_path)


# --- deciding -----------------------------------------------------------------------------------------------------


async def test_what_renews_and_what_does_not(site: Site, job: Job) -> None:
    """One table: the words of a refusal, and whether it is another's."""
    stranger = make_grid(job.pilots_file.parent / "x", name="Other CA").user("Alice Adams")
    bob = site.grid.user("Bob Baker")
    cases: list[tuple[bytes, str, bool]] = [
        (site.proxy(2), "", False),
        (site.proxy(0.5), "does not live longer", False),
        (job.work.credential.pem, "does not live longer", False),
        (site.proxy(2, owner=bob), "Bob Baker", True),
        (site.proxy(2, fqan="/demo/Role=admin"), "/demo/Role=admin, not /demo/Role=pilot", True),
        (site.proxy(2, fqan=""), "none, not /demo/Role=pilot", True),
        (make_proxy(stranger).pem, "does not trust", False),
        (site.proxy(-1), "ended on", False),
        (b"-----BEGIN CERTIFICATE-----\n", "does not end", False),
        (b"x" * (10 << 20), "at most", False),
        (without_key(site.proxy(2)), "no private", False),
    ]  # fmt: skip
    for pem, words, changed in cases:
        outcome = judge(job.work.credential, pem, job.work.description, site.trust)
        if words:
            assert isinstance(outcome, Kept), words
            assert words in outcome.why
            assert outcome.changed is changed, words
        else:
            assert isinstance(outcome, Renewed)


# --- accepted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.LAUNCHING, State.RUNNING, State.SUSPENDED, State.STOPPING])
async def test_a_pushed_renewal_is_in_both_places_whole_and_private(site: Site, job: Job, state: State) -> None:
    job.state = state
    before = job.in_sandbox()
    async with job.kept_up_to_date():
        assert await job.push(site.proxy(2)) == 1
        assert job.work.credential.usable_until == pytest.approx(time.time() + 2 * HOUR_S, abs=60)
        assert job.on_disk() == job.work.credential.pem
        await until(lambda: job.in_sandbox() == job.on_disk())
    assert job.in_sandbox() != before
    assert stat.S_IMODE(os.stat(job.place.path / "proxy").st_mode) == 0o600
    assert not (job.place.path / "proxy.tmp").exists()
    assert job.renewals.calls == 1
    assert "proxy-renewed" in job.audited()


@pytest.mark.parametrize("state", [State.STAGING_IN, State.STAGING_OUT, State.REPORTING])
async def test_while_the_sandbox_is_not_to_be_touched_only_the_pilots_side_is_renewed(
    site: Site, job: Job, state: State
) -> None:
    job.state = state
    before = job.in_sandbox()
    async with job.kept_up_to_date():
        assert await job.push(site.proxy(2)) == 1
        assert job.on_disk() == job.work.credential.pem
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert job.in_sandbox() == before
        assert job.renewals.calls == 0
        if state is State.STAGING_IN:  # and once it is complete, it follows
            job.state = State.LAUNCHING
            job.renewals.state_changed()
            await until(lambda: job.in_sandbox() == job.on_disk())


async def test_one_that_overtakes_the_jobs_own_waits_for_it(site: Site, job: Job) -> None:
    """Asking, and while the own one is fetched."""
    own, job.work.credential = job.work.credential, None
    job.state = State.CREDENTIAL
    assert await job.push(site.proxy(2)) == 1
    assert job.on_disk() == own.pem
    job.work.credential = own
    async with job.kept_up_to_date():
        assert job.work.credential.usable_until > own.usable_until + 0.9 * HOUR_S


async def test_one_that_is_no_good_while_the_job_is_not_even_known_costs_nothing(site: Site, job: Job) -> None:
    """Asking: there is neither a description nor a proxy yet. A delegator that does not check gives an expired one."""
    job.work.credential, job.state = None, State.ASKING
    del job.work.description
    stale = make_proxy(site.alice, lifetime_s=-5)

    async def sign(request: bytes) -> bytes:
        return signed_without_a_look(stale, request)

    async with connection() as (fd, state, peer), trio.open_nursery() as nursery:
        nursery.start_soon(job.renewals.serve, PassedCommand(Command.DELEGATE_GSI_CRED_STARTER, "", "", state), fd)
        await delegation.give(peer.stream, sign)
        assert (await peer.get()).int() == 1
    assert job.renewals._waiting is None


def signed_without_a_look(source: Certified, request: bytes) -> bytes:
    """As a stock delegator does it: an expired source, or another's key, is signed all the same."""
    made = make_proxy(source, lifetime_s=-1)
    return b"".join(c.public_bytes(serialization.Encoding.DER) for c in (made.certificate, *made.chain))


# --- refused ------------------------------------------------------------------------------------------------------


async def test_another_identity_leaves_the_old_one_and_the_shadow_content(site: Site, job: Job) -> None:
    """It is told 1: so it neither sends the key nor gives up; a proper renewal after it is taken."""
    before = job.on_disk()
    async with job.kept_up_to_date():
        assert await job.push(site.proxy(2, owner=site.grid.user("Bob Baker"))) == 1
        assert (job.on_disk(), job.in_sandbox()) == (before, before)
        assert "Bob Baker" in job.renewals.words
        assert job.audited() == ["proxy-renewal-refused"]
        assert job.events == []
        assert await job.push(site.proxy(2)) == 1
        await until(lambda: job.in_sandbox() == job.on_disk() != before)


@pytest.mark.parametrize(("policy", "kind"), [("hold", Hold), ("stop", Requeue)])
async def test_another_role_holds_or_stops_the_job_where_the_site_wants_that(
    site: Site, place: Place, tmp_path: Path, policy: str, kind: type
) -> None:
    job = Job(site, place, tmp_path, policy)
    before = job.on_disk()
    assert await job.push(site.proxy(2, fqan="/demo")) == 1
    (event,) = job.events
    assert isinstance(event, IdentityChanged)
    assert isinstance(event.verdict, kind)
    assert event.verdict.code == 4
    assert "/demo/Role=pilot" in event.verdict.text
    assert job.on_disk() == before


async def test_a_submit_side_that_has_nothing_to_delegate_changes_nothing(site: Site, job: Job) -> None:
    before = job.on_disk()
    assert await job.push(b"garbage") is None
    assert await job.push(site.proxy(-1)) is None
    assert job.on_disk() == before
    assert await job.push(site.proxy(2)) == 1


async def test_a_stranger_who_knows_only_the_session_gets_nowhere(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """He opens connections and says nothing, or answers without the key: each costs itself only, within its time."""
    monkeypatch.setattr(renewal, "EXCHANGE_WITHIN_S", 0.2)
    before = job.on_disk()
    async with connection() as (fd, state, _peer):
        await job.renewals.serve(PassedCommand(Command.DELEGATE_GSI_CRED_STARTER, "", "", state), fd)
    async with connection() as (fd, state, peer), trio.open_nursery() as nursery:
        nursery.start_soon(job.renewals.serve, PassedCommand(Command.DELEGATE_GSI_CRED_STARTER, "", "", state), fd)
        await peer.stream._transport.send_all(b"\x01\x00\x00\x00\x13" + b"abc" * 8)  # a frame, not by the key
    assert job.on_disk() == before


async def test_silent_connections_beyond_a_few_are_closed_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "EXCHANGE_WITHIN_S", 60.0)
    async with AsyncExitStack() as open_ones, trio.open_nursery() as nursery:
        for _ in range(renewal.MAX_EXCHANGES):
            fd, state, _peer = await open_ones.enter_async_context(connection())
            nursery.start_soon(job.renewals.serve, PassedCommand(Command.DELEGATE_GSI_CRED_STARTER, "", "", state), fd)
        await trio.testing.wait_all_tasks_blocked()
        async with connection() as (fd, state, _peer):
            with trio.fail_after(60):
                await job.renewals.serve(PassedCommand(Command.DELEGATE_GSI_CRED_STARTER, "", "", state), fd)
        nursery.cancel_scope.cancel()


class Elsewhere:
    """A far side at an account to which the site maps the renewed proxy now, and which is not the sandbox's."""

    hello = SimpleNamespace(uid=4711)

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.ended = False

    async def send(self, value: Any) -> None:
        self.sent.append(value)

    async def receive(self) -> dict[str, Any]:
        return {"done": True}

    async def end(self) -> None:
        self.ended = True


async def test_a_proxy_is_never_given_to_another_account_than_the_sandboxs(
    site: Site, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, before = Elsewhere(), job.in_sandbox()

    async def opened(*_words: Any, **_more: Any) -> Elsewhere:
        return far

    monkeypatch.setattr(renewal, "open_call", opened)
    async with job.kept_up_to_date():
        assert await job.push(site.proxy(2)) == 1
        await until(lambda: far.ended)
    assert far.sent == []
    assert job.in_sandbox() == before


@pytest.mark.needs_root
def test_a_wrapper_puts_no_proxy_into_anothers_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4711)
    with pytest.raises(PermissionError, match="somebody else's"):
        replace_proxy.replace(os.fsencode(tmp_path), b"proxy", b"secret")
    assert list(tmp_path.iterdir()) == []


# --- asked for ----------------------------------------------------------------------------------------------------


class Asked:
    """A shadow that delegates on request, and counts."""

    def __init__(self, source: bytes) -> None:
        self.source, self.times = source, 0

    async def fetch_proxy(self, expiration: int, exchange: Callable[..., Any]) -> bytes:
        self.times += 1
        return cast(bytes, await exchange(partial(_signed, self.source)))


async def test_a_role_that_a_user_merely_states_is_no_other_user_for_the_site(site: Site, job: Job) -> None:
    """Else a banned one would have as many rows of calls as he can think of roles."""
    keys = []
    for extension in (
        voms_extension(site.alice, site.alice, ["/demo/Role=a"]),  # signed by herself
        voms_extension(site.alice, site.alice, ["/demo/Role=b"]),
        voms_extension(site.alice, site.server, ["/demo/Role=pilot"]),
    ):
        job.work.shadow = Asked(make_proxy(site.alice, extensions=[extension]).pem)
        assert isinstance(await asking.fetch_credential(cast(Work, job.work)), CredentialStored)
        keys.append(identity_of(job.pilots_file))
    mine = site.alice.identity
    assert keys == [(f"{mine}\n\n", mine)] * 2 + [(f"{mine}\n/demo/Role=pilot\n", mine)]


async def test_somebody_elses_proxy_holds_the_job_and_is_in_the_audit(
    site: Site, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    introduced: list[object] = []

    async def introduce(work: Work) -> None:
        introduced.append(work)

    monkeypatch.setattr(asking, "introduce", introduce)
    bob = site.grid.user("Bob Baker")
    before = job.on_disk()
    job.work.shadow = Asked(make_proxy(bob).pem)
    failed = await asking.fetch_credential(cast(Work, job.work))
    assert isinstance(failed, StepFailed)
    assert isinstance(failed.verdict, Hold)
    assert failed.verdict.code == 4
    assert bob.identity in failed.verdict.text
    assert site.alice.identity in failed.verdict.text
    (record,) = audit.read(job.work.settings.log / "AuditLog")
    assert record["event"] == "proxy-refused"
    assert bob.identity in record["why"]
    assert job.on_disk() == before
    assert introduced == [job.work], "the shadow knows whose word the hold is"


async def _signed(source: bytes, request: bytes) -> bytes:
    return credentials.sign_request(source, request, not_after=None)


async def test_a_refused_copy_is_asked_for_by_delegation_only_when_that_is_safe(
    site: Site, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on a stranger's word, once after a push that broke off, and where the submit side sends copies only."""
    monkeypatch.setattr(renewal, "EXCHANGE_WITHIN_S", 0.2)
    job.work.shadow = shadow = Asked(site.proxy(2))
    await job.renewals.announced()
    assert shadow.times == 0
    async with connection() as (fd, state, _peer):
        await job.renewals.serve(PassedCommand(Command.DELEGATE_GSI_CRED_STARTER, "", "", state), fd)
    await job.renewals.announced()
    await job.renewals.announced()
    assert shadow.times == 1
    assert job.work.credential.usable_until > time.time() + 1.9 * HOUR_S
    job.renewals._pulled_s = job.renewals._broken_off_s = -math.inf  # long ago
    await job.renewals.announced()
    assert shadow.times == 1
    job.work.proxy_copied = True
    await job.renewals.announced()
    assert shadow.times == 2


# --- when things fail ---------------------------------------------------------------------------------------------


async def test_a_switch_that_is_down_is_tried_again_until_the_sandbox_has_it(
    site: Site, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In real time, with pauses made short."""
    monkeypatch.setattr(renewal, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(renewal, "LAST_PAUSE_S", 0.05)
    down = [True]

    def context(**patience: bool) -> Context:
        good = wrapper_context()
        if not down[0]:
            return good
        return attrs.evolve(good, settings=Settings(sailplane_wrapper_dir="/nonexistent"))

    job.work.context = context
    async with job.kept_up_to_date():
        assert await job.push(site.proxy(2)) == 1
        await until(lambda: job.renewals.calls >= 3)
        assert job.in_sandbox() != job.on_disk()
        down[0] = False
        await until(lambda: job.in_sandbox() == job.on_disk())


async def test_a_disk_that_is_full_leaves_the_old_one_and_is_tried_again(
    site: Site, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "FIRST_PAUSE_S", 0.02)
    before = job.on_disk()
    place = job.pilots_file.parent
    place.chmod(0o777)  # no place for secrets: store_private refuses
    async with job.kept_up_to_date():
        assert await job.push(site.proxy(2)) == 1
        assert job.on_disk() == before
        assert job.work.credential.pem == before
        place.chmod(0o700)
        await until(lambda: job.on_disk() != before)
        await until(lambda: job.in_sandbox() == job.on_disk())


@pytest.mark.parametrize("trap", ["link", "left-over", "directory"])
async def test_what_the_job_puts_in_the_way_hurts_only_itself(site: Site, job: Job, tmp_path: Path, trap: str) -> None:
    proxy, victim = job.place.path / "proxy", tmp_path / "victim"
    victim.write_text("theirs")
    proxy.unlink()
    match trap:
        case "link":
            proxy.symlink_to(victim)
        case "left-over":
            (job.place.path / "proxy.tmp").symlink_to(victim)
        case "directory":
            (proxy / "sub").mkdir(parents=True)
    async with job.kept_up_to_date():
        assert await job.push(site.proxy(2)) == 1
        await until(lambda: job.renewals.calls == 1 and not job.renewals._stale())
    assert victim.read_text() == "theirs"
    assert not (job.place.path / "proxy.tmp").exists()
    assert proxy.is_dir() if trap == "directory" else job.in_sandbox() == job.on_disk()


async def test_keys_made_ahead_are_used_up_and_then_made(site: Site, job: Job) -> None:
    job.work.keys = Keys([credentials.make_rsa_key()], rsa=True)
    for hours in (2, 3):
        assert await job.push(site.proxy(hours)) == 1
        assert b"BEGIN PRIVATE KEY" in job.on_disk()
        assert len(job.on_disk()) > 4000  # an RSA key and two certificates with it
    assert job.work.keys.ahead == []
