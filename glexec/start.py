"""Where the root part begins: with the child that will decide, before anything else is even loaded.

The child loads its libraries meanwhile, which takes longer than all that is to be found out about the caller first.
"""

import os

from glexec import decision


def main(conf_path: str) -> None:
    """Entry of the installed root part; ends the process."""
    try:
        decider = decision.Decider() if os.getuid() == os.geteuid() == 0 else None
    except OSError:
        decider = None  # the caller's limit of processes, which is lifted next
    from glexec import root

    root.main(conf_path, decider)
