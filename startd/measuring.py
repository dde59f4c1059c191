"""What programs beside the jobs measured goes to the jobs: by their starters to their shadows. Acting."""

from __future__ import annotations

from collections.abc import Callable

from classad2 import ClassAd

from startd.claims import Claims
from startd.cronjobs import Published
from startd.held import Held
from starter.messages import Measured


def tell_jobs(claims: Claims, published: Published, ad_of: Callable[[Held], ClassAd]) -> None:
    """Each job hears what its devices did for it so far."""
    for held in list(claims.slots.held.values()):
        if held.starter is not None:
            claims.tell(held, Measured(published.measured_of_job(ad_of(held))))
