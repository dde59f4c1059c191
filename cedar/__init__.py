"""HTCondor's wire protocol: CEDAR streams, security sessions, ClassAds, file transfer.

A core without I/O (`codec`, `frames`, `crypto`, `security_*`) and thin trio streams over it
(`stream`, `client`, `server`). A library: it does not log, and knows nothing of jobs.
"""

import os

# The wheel looks for a configuration when it is first imported, and would find the node's own.
os.environ["CONDOR_CONFIG"] = os.devnull
