"""What the pilot's daemons share: settings, logging, local RPC, credentials, the identity switch's near side."""

import os

# The wheel looks for a configuration when it is first imported, and would find the node's own.
# Ours is read by `pilot.configuration`, in a process of its own.
os.environ["CONDOR_CONFIG"] = os.devnull
