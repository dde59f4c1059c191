"""One submission at the pool's side: what a user hands over, checked and copied, until Commit makes jobs of it.

Everything that arrives is hostile: each step has limits, and a refusal ends the submission with nothing left of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

from pilot import credentials
from pool.jobad import Accepted, BadJob, accept, check_relative
from pool.messages import Begun, GiveProxy, InputEntry, PutFiles, PutInputs, PutJobs
from pool.model import Cluster, Entry, Job
from pool.queue import Queue
from pool.slices import in_slices
from pool.spool import Spool, SpoolTrouble, sync_directory, take

# One submission: what stock pools are seen to take in one go, and less than a test machine's disk.
MAX_FILES = 20_000
MAX_BYTES = 20 * 2**30
MAX_SETS = 100_000
MAX_ENTRIES = 200_000
MAX_JOBS = 100_000
# They are in memory until Commit: so many jobs may have ads of 2.6 KiB, and an ad alone may have 128.
MAX_AD_BYTES = 256 * 2**20
MAX_CERTIFICATES_BYTES = 64 * 1024
_MODE_BITS = 0o777
# Names that the sandbox uses for itself.
_TAKEN_NAMES = frozenset(
    {"_condor_stdout", "_condor_stderr", ".job.ad", ".machine.ad", ".update.ad", ".chirp.config", ".condor_creds",
     ".job_wrapper_failure"}
)  # fmt: skip


class Rejected(Exception):
    """The pool does not take this; `code` is for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@frozen
class Rules:
    """What the pool was told about users."""

    certificates_dir: Path | None
    owner_from_proxy: bool
    max_files: int = MAX_FILES
    max_bytes: int = MAX_BYTES
    max_ad_bytes: int = MAX_AD_BYTES


@define
class Submission:
    """The state between Begin and Commit. `abandon` must be called unless `commit` returned."""

    queue: Queue
    spool: Spool
    rules: Rules
    cluster: Cluster
    pending: credentials.PendingRequest | None = None
    sizes: list[int] = field(factory=list)
    sets: list[list[Entry]] = field(factory=list)
    entries: int = 0
    jobs: list[tuple[Accepted, int]] = field(factory=list)
    ad_bytes: int = 0
    bytes_taken: int = 0

    @classmethod
    async def begin(cls, queue: Queue, spool: Spool, rules: Rules, *, uid: int, owner: str, proxy: bool) -> Submission:
        """A fresh cluster number and, when a proxy is to come, a fresh key."""
        if proxy and rules.certificates_dir is None:
            raise Rejected(
                "no-certificates",
                "this pool has no certificates directory (SAILPLANE_CERTIFICATES_DIR), so it takes no proxies",
            )
        if rules.owner_from_proxy and not proxy:
            raise Rejected(
                "proxy-needed", "this pool tells owners apart by their proxies: name one with 'x509userproxy = FILE'"
            )
        now = time.time()
        number = queue.reserve_cluster(uid, owner, now)
        await trio.to_thread.run_sync(spool.make_cluster, number)
        pending = await trio.to_thread.run_sync(credentials.make_request) if proxy else None
        return cls(queue, spool, rules, Cluster(number, uid, owner, now), pending)

    def begun(self) -> Begun:
        request = self.pending.der if self.pending is not None else b""
        return Begun(self.cluster.number, request, self.rules.max_files, self.rules.max_bytes)

    async def give_proxy(self, message: GiveProxy) -> None:
        """Complete, verify and store what the user delegated."""
        if self.pending is None:
            raise Rejected("order", "no proxy was announced, or it is here already")
        if len(message.certificates) > MAX_CERTIFICATES_BYTES:
            raise Rejected("proxy-too-big", "the proxy's certificates are larger than 64 KiB")
        check_relative(message.name, "x509userproxy")
        if "/" in message.name or message.name in _TAKEN_NAMES or not message.name.isprintable():
            raise Rejected("bad-name", f"{message.name!r} cannot be a proxy's name")
        found = await trio.to_thread.run_sync(self._store_proxy, self.pending, message.certificates)
        if not found.identity.isprintable():
            raise Rejected("proxy-broken", "the proxy's identity has characters that cannot be printed")
        self.pending = None
        owner = self.cluster.owner
        if self.rules.owner_from_proxy:
            owner = self.queue.owner_of_identity(found.identity, owner_name(found.identity))
        self.cluster = evolve(
            self.cluster,
            owner=owner,
            identity=found.identity,
            proxy_name=message.name,
            proxy_expires_at=found.expires_at,
        )

    def _store_proxy(self, pending: credentials.PendingRequest, certificates: bytes) -> credentials.Credential:
        assert self.rules.certificates_dir is not None
        try:
            pem = pending.complete(certificates)
            found = credentials.verify(pem, self.rules.certificates_dir, now=time.time())
            credentials.store_private(self.spool.proxy(self.cluster.number), pem)
        except credentials.CredentialError as error:
            raise Rejected(f"proxy-{error.code}", f"the pool does not accept your proxy: {error}") from error
        return found

    async def put_files(self, message: PutFiles, fds: Sequence[int]) -> None:
        """Copy open files into the spool; synced when this returns."""
        if message.first != len(self.sizes) or len(fds) != len(message.sizes) or not fds:
            raise Rejected("order", "the files are not the next ones, or there is not one descriptor each")
        if len(self.sizes) + len(fds) > self.rules.max_files:
            raise Rejected("too-many-files", f"more than {self.rules.max_files} input files in one submission")
        for fd in fds:
            await self._put_file(fd)

    async def _put_file(self, fd: int) -> None:
        key = len(self.sizes)
        try:
            size = await take(
                fd, self.spool.input(self.cluster.number, key), limit_bytes=self.rules.max_bytes - self.bytes_taken
            )
        except SpoolTrouble as trouble:
            raise Rejected(
                "spool-full" if trouble.full else "bad-file", f"input file number {key}: {trouble}"
            ) from trouble
        self.sizes.append(size)
        self.bytes_taken += size

    def put_inputs(self, message: PutInputs) -> None:
        """More of an input set: the last one, or the next."""
        if (
            message.input_set not in (len(self.sets) - 1, len(self.sets))
            or message.input_set < 0
            or message.input_set >= MAX_SETS
        ):
            raise Rejected("order", "input sets come one after the other")
        self.entries += len(message.entries)
        if self.entries > MAX_ENTRIES:
            raise Rejected("too-many-files", f"more than {MAX_ENTRIES} entries in the input lists of one submission")
        if message.input_set == len(self.sets):
            self.sets.append([])
        self.sets[message.input_set] += [self._entry(entry) for entry in message.entries]

    def _entry(self, entry: InputEntry) -> Entry:
        check_relative(entry.name, "transfer_input_files")
        if entry.name in _TAKEN_NAMES:
            raise Rejected("bad-name", f"an input file cannot be called {entry.name!r}: the sandbox uses that name")
        if entry.key is None:
            return Entry(entry.name, entry.mode & _MODE_BITS)
        if not 0 <= entry.key < len(self.sizes):
            raise Rejected("order", "an input entry names a file that has not been given")
        return Entry(entry.name, entry.mode & _MODE_BITS, self.sizes[entry.key], entry.key)

    async def put_jobs(self, message: PutJobs) -> None:
        """More jobs, in order of proc."""
        await in_slices(self._take_jobs(message))

    def _take_jobs(self, message: PutJobs) -> Generator[None, None, None]:
        for job in message.jobs:
            if not 0 <= job.input_set < len(self.sets) or len(self.jobs) >= MAX_JOBS:
                raise Rejected("order", "a job names an input set that has not been given, or there are too many jobs")
            self.ad_bytes += len(job.ad)
            if self.ad_bytes > self.rules.max_ad_bytes:
                raise Rejected(
                    "too-large",
                    f"the ads of one submission's jobs have more than {self.rules.max_ad_bytes >> 20} MiB;"
                    " hand the jobs in by several submissions",
                )
            accepted = accept(job.ad)
            self._check_executable(accepted, job.input_set)
            self.jobs.append((accepted, job.input_set))
            yield

    def _check_executable(self, accepted: Accepted, chosen: int) -> None:
        name = accepted.executable
        if name is not None and not any(entry.name == name and entry.key is not None for entry in self.sets[chosen]):
            raise BadJob(
                f"the executable {name!r} is not among the job's files;"
                " say 'transfer_executable = false' if it is on the nodes"
            )

    async def commit(self) -> list[Job]:
        """The jobs, on disk when this returns."""
        if self.pending is not None:
            raise Rejected("order", "the announced proxy has not come")
        if not self.jobs:
            raise Rejected("empty", "a submission without a job")
        check_sets(self.sets, self.cluster.proxy_name)
        await trio.to_thread.run_sync(sync_directory, self.spool.cluster(self.cluster.number) / "in")
        return self.queue.add_jobs(self.cluster, self.sets, [(job.text, chosen) for job, chosen in self.jobs])

    async def abandon(self) -> None:
        """Nothing is left of it. Shielded: a cancelled conversation must not leave files behind."""
        with trio.CancelScope(shield=True):
            self.queue.forget_cluster(self.cluster.number)
            await trio.to_thread.run_sync(self.spool.remove_cluster, self.cluster.number)


def check_sets(sets: Sequence[Sequence[Entry]], proxy_name: str | None) -> None:
    """No name twice, and directories before what lies in them. Raises Rejected."""
    for entries in sets:
        names: set[str] = set() if proxy_name is None else {proxy_name}
        directories = {""}
        for entry in entries:
            if entry.name in names:
                raise Rejected("name-twice", f"two input files of one job would both be called {entry.name!r}")
            if os.path.dirname(entry.name) not in directories:
                raise Rejected("order", f"{entry.name!r} comes before its directory")
            names.add(entry.name)
            if entry.key is None:
                directories.add(entry.name)


def owner_name(identity: str) -> str:
    """An account-like name from an identity's last CN: '/DC=org/CN=Alice Adams' -> 'alice_adams'."""
    common = identity.rsplit("/CN=", 1)[-1].lower()
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in common).strip("_")[:32]
    return name if name and not name[0].isdigit() else f"user_{name}".rstrip("_")
