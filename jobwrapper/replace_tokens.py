"""replace-tokens: put renewed tokens in the place of the job's old ones, each in one step.

Frame in: {"directory": path, "files": [[name, content in base64], ...]}. Frame out: {"done": true} or {"failed": ...}.
"""

import os
from binascii import a2b_base64

from jobwrapper.frames import Gone, Line, to_bytes, trouble
from jobwrapper.replace_proxy import replace


def main() -> int:
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        directory, name = to_bytes(wanted["directory"]), b""
        try:
            _make(directory)
            for text, data in wanted["files"]:
                name = to_bytes(text)
                replace(directory, name, a2b_base64(data))
        except OSError as error:
            line.send({"failed": trouble("replace", error, name)})
            return 1
        line.send({"done": True})
        return 0
    except Gone:
        return 1


def _make(directory: bytes) -> None:
    """Again, where the job has removed it."""
    try:  # noqa: SIM105 - contextlib costs an import
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
