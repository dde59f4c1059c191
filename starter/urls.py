"""A job's URLs: the plugins that it may use, and what the submit side is told of their work."""

from __future__ import annotations

from collections.abc import Sequence

from classad2 import ClassAd

from starter.description import CREDENTIALS_NAME, JOB_AD_NAME, MACHINE_AD_NAME, SCRATCH_MARKER
from starter.plugins import Judged, Plugins, programs_of
from starter.work import Work

# Nothing of the pilot's environment; where Debian and its kin have their programs.
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def plugins_of(work: Work, *, proxy: bool) -> Plugins:
    """For one call of the switch. ``proxy``: the job's lies in the sandbox by now."""
    sandbox, job = str(work.place.path), work.description
    environment = {
        "PATH": PATH,
        **dict(work.settings.starter_job_environment),
        "HOME": sandbox,
        "TMPDIR": sandbox,
        "_CONDOR_SCRATCH_DIR": sandbox,
        "_CONDOR_JOB_AD": f"{sandbox}/{JOB_AD_NAME}",
        "_CONDOR_MACHINE_AD": f"{sandbox}/{MACHINE_AD_NAME}",
    }
    if proxy and job.proxy_name is not None:
        environment["X509_USER_PROXY"] = f"{sandbox}/{job.proxy_name}"
    if job.services:
        environment["_CONDOR_CREDS"] = f"{sandbox}/{CREDENTIALS_NAME}"
    return Plugins(
        programs=programs_of(dict(work.activation.plugins), job.files, sandbox),
        sandbox=sandbox,
        environment=environment,
        limit_s=work.settings.max_file_transfer_plugin_lifetime,
        host=work.host,
        of_job={name: value.replace(SCRATCH_MARKER, sandbox) for name, value in job.environment.items()},
    )


async def tell_results(work: Work, which: str, judged: Sequence[Judged]) -> None:
    """InputPluginResultList or OutputPluginResultList in the job's ad, as stock has it; nothing where no plugin ran."""
    ads = [ad for one in judged for ad in one.ads]
    if ads:
        update = ClassAd()
        update[f"{which}PluginResultList"] = ads
        await work.shadow.register_job_info(update)
