#!/usr/bin/python3 -IS
"""A file transfer plugin for http, https and file, by curl: HTCondor's multi-file protocol (-classad; -infile FILE
-outfile FILE [-upload]). Run at the job's account, in its sandbox.

A token of the job's named by the scheme (NAME+https://...) is read from $_CONDOR_CREDS/NAME.use and goes to curl by
its standard input, never by its command line.
"""

import os
import re
import subprocess
import sys
import time

METHODS = "http,https,file"
_PAIR = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
# A server that does not answer, or sends less than a byte a second, is given up; curl tries again what may pass.
CONNECT_S, SLOW_S, TRIES = 30, 300, 3
CURL_CODES = {6: "the host's name is not known", 7: "the host does not answer", 28: "it took too long",
              37: "the file cannot be read", 35: "the TLS handshake failed",
              51: "the host's certificate is not its own",
              60: "the host's certificate is not trusted", 22: "the server refused"}  # fmt: skip


def main(argv: "list[str]") -> int:
    """Exit status: 0 all files went, 1 some did not (the -outfile says which and why), 100 wrong usage."""
    if argv[1:] == ["-classad"]:
        return query()
    if argv[1:4:2] != ["-infile", "-outfile"] or len(argv) < 5 or argv[5:] not in ([], ["-upload"]):
        sys.stderr.write("usage: curl_plugin.py -classad | -infile FILE -outfile FILE [-upload]\n")
        return 100
    with open(argv[2], encoding="utf-8", errors="surrogateescape") as file:
        wishes = read(file.read())
    failed = 0
    with open(argv[4], "w", encoding="utf-8", errors="surrogateescape") as out:
        for wish in wishes:
            answer = move(wish["Url"], wish["LocalFileName"], upload=bool(argv[5:]))
            failed += not answer["TransferSuccess"]
            out.write(ad(answer) + "\n")
    return 1 if failed else 0


def query() -> int:
    """What this plugin can do; nothing where there is no curl."""
    if not any(os.access(os.path.join(place, "curl"), os.X_OK) for place in os.get_exec_path()):
        sys.stderr.write("curl_plugin.py: curl is not installed\n")
        return 1
    lines = ['PluginType = "FileTransfer"', 'PluginVersion = "1.0"', "MultipleFileSupport = true",
             'SupportedMethods = "%s"' % METHODS, "ProtocolVersion = 2"]  # fmt: skip
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def read(text: str) -> "list[dict[str, str]]":
    """The wishes: flat ads of strings, one after the other."""
    wishes = []
    found = {}  # type: dict[str, str]
    for name, value in _PAIR.findall(text):
        found[name] = re.sub(r"\\(.)", r"\1", value)
        if "Url" in found and "LocalFileName" in found:
            wishes.append(found)
            found = {}
    return wishes


def ad(values: "dict[str, object]") -> str:
    """One flat ad in new syntax, on one line."""
    parts = []
    for name, value in values.items():
        if isinstance(value, str):
            value = '"%s"' % re.sub(r'(["\\])', r"\\\1", value.replace("\n", " "))
        parts.append("%s = %s" % (name, str(value).lower() if isinstance(value, bool) else value))
    return "[ %s ]" % "; ".join(parts)


def move(url: str, path: str, upload: bool) -> "dict[str, object]":
    """One file, by one curl; what became of it."""
    scheme, _, rest = url.partition("://")
    token, _, scheme = scheme.rpartition("+")
    start = time.time()
    try:
        config = header(token)
        result = curl(scheme + "://" + rest, path, upload, config)
        problem = result.pop("problem")
    except OSError as error:
        result, problem = {}, error.strerror or str(error)
    size = os.path.getsize(path) if not problem and os.path.exists(path) else 0
    answer = {"TransferSuccess": not problem, "TransferProtocol": scheme, "TransferUrl": url,
              "TransferType": "upload" if upload else "download", "TransferFileName": os.path.basename(path),
              "TransferFileBytes": size, "TransferTotalBytes": size, "TransferStartTime": int(start),
              "TransferEndTime": int(time.time())}  # fmt: skip
    answer.update(result)
    if problem:
        answer["TransferError"] = problem
    return answer


def header(token: str) -> str:
    """curl's configuration with the job's token; OSError when there is none that fits a header."""
    if not token:
        return ""
    name = os.path.join(os.environ.get("_CONDOR_CREDS", ""), os.path.basename(token) + ".use")
    with open(name, encoding="ascii") as file:
        text = file.read().strip()
    if '"' in text or "\n" in text:
        raise OSError(22, "the token %s is no text of one line" % token)
    return 'header = "Authorization: Bearer %s"\n' % text


def curl(url: str, path: str, upload: bool, config: str) -> "dict[str, object]":
    """What curl says of one file; its "problem" is empty when all went well. OSError for a URL that no line holds."""
    # A URL may be signed: it goes by standard input, too. -q: no configuration of the account's; --globoff: brackets in
    # a URL are themselves.
    if not url.isprintable():
        raise OSError(22, "a URL with characters that cannot be printed")
    config += 'url = "%s"\n' % re.sub(r'(["\\])', r"\\\1", url)
    command = ["curl", "-q", "--silent", "--show-error", "--fail", "--globoff", "--location", "--proto",
               "=http,https,file", "--proto-redir", "=http,https",
               "--connect-timeout", str(CONNECT_S), "--speed-limit", "1", "--speed-time", str(SLOW_S),
               "--retry", str(TRIES), "-H", "Expect:", "--config", "-", "--write-out", "%{http_code}"]  # fmt: skip
    command += ["--upload-file", path, "--output", os.devnull] if upload else ["--output", path]
    pipe = subprocess.PIPE
    done = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    said, errors = done.communicate(config.encode("utf-8", "surrogateescape"))
    code = said.decode("ascii", "replace").strip()
    result = {"TransferHTTPStatusCode": int(code) if code.isdigit() else 0, "LibcurlReturnCode": done.returncode}
    words = errors.decode("utf-8", "replace").strip().splitlines()
    known = CURL_CODES.get(done.returncode, "curl failed")
    result["problem"] = "%s (%s)" % (known, words[-1] if words else done.returncode) if done.returncode else ""
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv))
