"""This process's descriptors: closing all that are not to be handed on."""

import os


def close_all_but(kept: "set[int]") -> None:
    """Close every descriptor that is not kept."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own
