"""The identity switch is tried before anything is advertised: a pilot that cannot run jobs must say so at once.

What is tried is `pilot.validation`; here it decides whether the startd starts, and with which switch.
"""

from __future__ import annotations

import os

import attrs

from pilot.findings import UseRefused, Validation
from pilot.settings import Settings
from pilot.switch import Switch
from pilot.validation import agreed_switch, examine

# Children read the configuration again: by this they learn what was decided.
_DECIDED = "_CONDOR_SAILPLANE_SWITCH"


class Unusable(Exception):
    """The switch cannot be used; the text names the cause and what to do. ``passing``: it may work later."""

    def __init__(self, text: str, *, passing: bool) -> None:
        super().__init__(text)
        self.passing = passing


def settle_switch(settings: Settings) -> Settings:
    """The settings with the switch that pool and site agree on (glideinWMS's table). Once, before anything runs: what
    it decides is for good.

    Raises:
        Unusable: they do not agree.
    """
    try:
        agreed = agreed_switch(settings)
    except UseRefused as refusal:
        raise Unusable(str(refusal), passing=False) from refusal
    if agreed != settings.sailplane_switch:
        os.environ[_DECIDED] = agreed
    return attrs.evolve(settings, sailplane_switch=agreed)


async def validate(settings: Settings, switch: Switch) -> Validation:
    """Try the switch and the node.

    Raises:
        Unusable: a check failed.
    """
    report = await examine(settings, switch)
    if report.failures:
        raise Unusable(report.words, passing=report.passing)
    return report
