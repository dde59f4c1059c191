"""What the starter lays into a sandbox beside the user's files. None of it ever goes back with the output."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from classad2 import ClassAd

from cedar.classads import to_wire, without_private
from starter.description import CREDENTIALS_NAME, JOB_AD_NAME, MACHINE_AD_NAME, UPDATE_AD_NAME
from starter.keptfiles import PAGE_BYTES
from starter.sandbox import Inward

# What only the job may read, and what anybody may whom it lets in.
PRIVATE, OPEN = 0o600, 0o644


async def lay(inward: Inward, name: str, data: bytes, mode: int) -> None:
    """One file."""
    await inward.file(name, mode, len(data), _once(data))


def ad_files(job_ad: ClassAd, machine_ad: ClassAd) -> dict[str, bytes]:
    """``.job.ad``, ``.machine.ad``, and room for the first ``.update.ad``."""
    return {
        JOB_AD_NAME: as_file(job_ad),
        MACHINE_AD_NAME: as_file(machine_ad),
        UPDATE_AD_NAME: b"\n" * PAGE_BYTES,
    }


async def lay_credentials(inward: Inward, files: Mapping[str, bytes]) -> None:
    """The directory that ``_CONDOR_CREDS`` names."""
    await inward.directory(CREDENTIALS_NAME, 0o700)
    for name, data in files.items():
        await lay(inward, f"{CREDENTIALS_NAME}/{name}", data, PRIVATE)


def as_file(ad: ClassAd) -> bytes:
    """An ad as a file: old syntax, without what is private (wire reference T28)."""
    return "".join(f"{line}\n" for line in sorted(to_wire(without_private(ad)))).encode("utf-8", "surrogateescape")


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
