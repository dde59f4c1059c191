"""ssh-setup: make what one sshd needs, in a directory of its own inside the sandbox.

Frame in: {"path": sandbox, "keygen": program, "sftp": program, "environment": {...}, "slot": name, "shells": [...],
"pids": [...]}. Frame out: {"user", "directory", "host_key", "client_key"}, or {"failed": ...}. The client's private
key is told to the pilot, for the tool, and kept nowhere.
"""

import os
import pwd

from jobwrapper.frames import Gone, Line, to_bytes, to_text, trouble

DIRECTORIES = 1000
KEY_BYTES = 16384
# Of the user's variables only the one that authorized_keys sets (needs OpenSSH 7.8): who had a pool account before
# may have left a ~/.ssh/environment there.
CONFIGURATION = """\
HostKey {directory}/host
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitEmptyPasswords no
PermitRootLogin {root}
PermitTunnel no
PermitUserRC no
PermitUserEnvironment XAUTHORITY
IgnoreRhosts yes
X11Forwarding yes
PrintMotd no
UseDNS no
LogLevel VERBOSE
AcceptEnv LANG LC_*
Subsystem sftp {sftp}
"""
# Runs in place of the account's shell. What the user asked for goes on as it is; $1 is the saved environment.
FORCED = """\
. "$1"
cd "$_CONDOR_JOB_IWD" || cd "$_CONDOR_SCRATCH_DIR" || exit 1
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then
    exec "$_CONDOR_SHELL" -c "$SSH_ORIGINAL_COMMAND"
fi
echo "Welcome to $_CONDOR_SLOT_NAME!"
echo "Your condor job is running with pid(s) $_CONDOR_JOB_PIDS."
exec "$_CONDOR_SHELL" -l
"""


class Unfit(OSError):
    """The account or the host is not fit for sshd."""

    def __init__(self, text: str) -> None:
        OSError.__init__(self, 1, text)


def main() -> int:
    line = Line()
    try:
        line.hello()
        wanted = line.receive()
        step = "account"
        try:
            account = fit_account()
            step = "prepare"
            line.send(prepare(wanted, account))
        except OSError as error:
            line.send({"failed": trouble(step, error)})
            return 1
        return 0
    except Gone:
        return 1


def fit_account() -> "pwd.struct_passwd":
    """An sshd without root's rights lets only its own account in, and runs its shell."""
    try:
        account = pwd.getpwuid(os.geteuid())
    except KeyError:
        raise Unfit("uid %d has no entry in the password database" % os.geteuid()) from None
    shell = account.pw_shell or "/bin/sh"
    if os.path.basename(shell) in ("nologin", "false") or not os.access(shell, os.X_OK):
        raise Unfit("account %s has no login shell" % account.pw_name)
    return account


def prepare(wanted: "dict", account: "pwd.struct_passwd") -> "dict":  # type: ignore[type-arg]
    """Directory, keys and files; what the pilot wants to know of them."""
    os.umask(0o077)
    directory = own_directory(to_bytes(wanted["path"]))
    host, client = make_key(wanted["keygen"], directory, "host"), make_key(wanted["keygen"], directory, "client")
    environment = dict(wanted["environment"])
    environment["_CONDOR_SLOT_NAME"] = wanted["slot"]
    environment["_CONDOR_SHELL"] = first_shell(wanted["shells"], account.pw_shell or "/bin/sh")
    environment["_CONDOR_JOB_PIDS"] = " ".join(str(pid) for pid in wanted["pids"])
    write(directory, "environment", saved(environment))
    write(directory, "forced", FORCED)
    command = "exec /bin/sh %s %s" % (quoted(directory + "/forced"), quoted(directory + "/environment"))
    # sshd has xauth write the cookie of a forwarded display there: an account may have no home to write to.
    options = 'environment="XAUTHORITY=%s/Xauthority",command="%s"' % (directory, command.replace('"', '\\"'))
    write(directory, "authorized_keys", "%s %s" % (options, client))
    root = "prohibit-password" if os.geteuid() == 0 else "no"
    plain = directory.replace("%", "%%")
    write(directory, "sshd_config", CONFIGURATION.format(directory=plain, sftp=wanted["sftp"], root=root))
    private = read(directory, "client")
    os.unlink(to_bytes(directory + "/client"))
    return {"user": account.pw_name, "directory": directory, "host_key": host, "client_key": private}


def own_directory(sandbox: bytes) -> str:
    """The first of its names that is free."""
    path = to_text(sandbox)
    if any(character.isspace() or character in "\"'\\" for character in path):
        raise Unfit("sshd cannot use a sandbox of such a name")
    for number in range(1, DIRECTORIES):
        directory = "%s/.condor_ssh_to_job_%d" % (path, number)
        try:
            os.mkdir(to_bytes(directory), 0o700)
        except FileExistsError:
            continue
        return directory
    raise Unfit("too many directories of sessions")


def make_key(keygen: str, directory: str, name: str) -> str:
    """A pair; its public half, which is one line."""
    import subprocess

    path = to_bytes(directory + "/" + name)
    done = subprocess.Popen(
        [keygen, "-q", "-N", "", "-C", "", "-t", "ed25519", "-f", path],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    printed, _ = done.communicate()
    if done.returncode != 0:
        raise Unfit("ssh-keygen: " + to_text(printed[-200:]))
    return read(directory, name + ".pub")


def first_shell(asked: "list[str]", own: str) -> str:
    """The first of the shells that there is."""
    for shell in asked:
        if shell.startswith("/") and os.path.isfile(to_bytes(shell)) and os.access(to_bytes(shell), os.X_OK):
            return shell
    return own


def saved(environment: "dict[str, str]") -> str:
    """For a shell to source. What belongs to a display would defeat the forwarding of X."""
    return "".join(["export %s=%s\n" % (name, quoted(value)) for name, value in environment.items() if _plain(name)])


def _plain(name: str) -> bool:
    if name in ("DISPLAY", "XAUTHORITY"):
        return False
    return name.isidentifier() and len(name.encode("utf-8", "surrogateescape")) == len(name)


def quoted(text: str) -> str:
    """One word for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def write(directory: str, name: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(to_bytes(directory + "/" + name), flags, 0o600)
    with open(fd, "wb") as file:
        file.write(to_bytes(text))


def read(directory: str, name: str) -> str:
    fd = os.open(to_bytes(directory + "/" + name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return to_text(file.read(KEY_BYTES))
