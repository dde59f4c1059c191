"""Entry of `pilot.usernsfar`, run as `python3 -IS pilot/usernsstart.py ...`; short, because it is compiled each time.

Nothing is added to sys.path: the package is found here, and nowhere else.
"""

import os
import sys

if __name__ == "__main__":
    package = type(sys)("pilot")
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["pilot"] = package
    from pilot import usernsfar

    usernsfar.main(sys.argv[1:])
