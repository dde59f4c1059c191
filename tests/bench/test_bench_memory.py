"""Memory that grew would be noticed here, and not only by who runs the benchmarks."""

from __future__ import annotations

import pytest

from bench import memory

# Seen 10.3 to 11.3, and 13.1 before the forerunner.
MOST_MB = 12.5


@pytest.mark.slow
@pytest.mark.needs_root
def test_a_starter_with_a_running_job_stays_small() -> None:
    (starter, *_) = memory.run()
    assert starter.name == "memory_starter"
    assert starter.ours_median < MOST_MB
