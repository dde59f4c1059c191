"""One job: stage in, launch, watch, stop, stage out; and the spawner that forks starters from a preloaded process.

Runs at the pilot's uid. What must run at the job's uid is in ``jobwrapper``.
"""
