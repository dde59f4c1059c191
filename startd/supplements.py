"""What the ads of slots say besides the slots themselves: counts, latches, what the settings copy from jobs and from
the other slots. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from classad2 import ClassAd

from cedar.classads import is_private
from pilot.settings import Settings
from startd.crossposts import Scalar, crossposts
from startd.latches import Latches
from startd.statistics import Statistics, wanted_names

# Of a job, in its slot's ad while it runs: HTCondor's own list (SYSTEM_STARTD_JOB_ATTRS), without what the starter's
# updates bring anyway.
OF_EVERY_JOB = ("ExecutableSize", "JobUniverse", "NiceUser")
# An attribute of a job that is longer stays out of its slot's ad, which goes to every collector at every change.
MAX_OF_JOB_CHARS = 4096


@attrs.define
class Supplements:
    """One startd's."""

    statistics: Statistics = attrs.field(factory=Statistics)
    latches: Latches = attrs.field(factory=lambda: Latches(()))
    of_jobs: Sequence[str] = OF_EVERY_JOB
    of_slots: Sequence[str] = ()
    _wanted: frozenset[str] = frozenset()
    _crossposted: Mapping[str, Scalar] = attrs.field(factory=dict)

    def reconfigure(self, settings: Settings) -> None:
        """The settings are these from now on; what was counted stays."""
        self.of_jobs = (*OF_EVERY_JOB, *settings.startd_job_attrs)
        self.of_slots = settings.startd_slot_attrs
        self._wanted = wanted_names(settings.statistics_to_publish_list)
        if tuple(self.latches.names) != settings.startd_latch_exprs:
            self.latches = Latches(settings.startd_latch_exprs)

    def put(self, ad: ClassAd, job: ClassAd | None, *, now_s: float, now: int) -> None:
        """Into the ad of a slot, which has ``job``. A job's attribute never takes the place of the slot's own."""
        for name in self.of_jobs if job is not None else ():
            if job is not None and name in job and name not in ad and not is_private(name):
                expression = job.lookup(name)
                if len(str(expression)) <= MAX_OF_JOB_CHARS:
                    ad[name] = expression
        ad.update(dict(self.statistics.attributes(self._wanted, now_s=now_s)))
        ad.update(dict(self._crossposted))
        self.latches.put(ad, now=now)

    def crosspost(self, ads: Sequence[ClassAd]) -> None:
        """These are the ads of all slots: what is told of each goes into every one, and into those to come."""
        self._crossposted = crossposts(ads, self.of_slots)
        for ad in ads:
            ad.update(dict(self._crossposted))
        self.latches.keep([str(ad["Name"]) for ad in ads])
