"""Entry: `python3 -IS DIR/__main__.py VERB` (or `python3 -IS DIR VERB`), descriptor 0 a socket to the pilot.

Everything in this directory runs at the job's account: standard library only, Python 3.6 or newer, and
nothing is imported that a verb does not need, because every call pays for it. C modules (_json, _socket,
_signal) stand in for their Python fronts, each of which costs 4 to 7 ms.
"""

import os
import sys

# As typing.TYPE_CHECKING, which costs an import; so does the front of _signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

# A plain dictionary, so that the words on the command line choose nothing but one of these modules.
VERBS = {
    "stage-in": "stage_in",
    "launch": "launch",
    "stage-out": "stage_out",
    "signal": "send_signals",
    "peek": "peek",
    "measure": "measure",
    "probe": "probe",
    "ssh-setup": "ssh_setup",
    "replace-proxy": "replace_proxy",
    "replace-tokens": "replace_tokens",
}


def main(argv: "list[str]") -> int:
    """Run one verb; 100 for wrong usage, 0 and 1 are the verb's."""
    if len(argv) != 2 or argv[1] not in VERBS:
        sys.stderr.write("usage: jobwrapper " + "|".join(sorted(VERBS)) + "\n")
        return 100
    if argv[1] != "launch":
        # A batch system may send it to every process of a pilot that it ends: files on their way are still brought
        # home. Whoever wants our end hangs up, or kills.
        _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)
    # As a package of its own, found here and nowhere else: nothing is added to sys.path.
    package = type(sys)("jobwrapper")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["jobwrapper"] = package
    verb = __import__("jobwrapper." + VERBS[argv[1]], fromlist=["main"])
    return int(verb.main())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
