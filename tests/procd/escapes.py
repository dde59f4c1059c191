"""Programs that try to outlive their job, and to keep others from ending it. Each has bounds of its own.

The first argument of each is a file: they begin when it is there, as a job does when it is registered.
"""

from __future__ import annotations

# However a test ends, nothing of these lives longer.
LIFE_S = 60

_WAIT = f"""
import os, resource, signal, sys, time
until = time.monotonic() + {LIFE_S}
while not os.path.exists(sys.argv[1]) and time.monotonic() < until:
    time.sleep(0.002)
"""

# A tree of the ways to get lost, drawn from a seed: argv has the seed, the depth, "stay" or "leave" for the first
# process. Each process takes some of WAYS, forks, and ends as one of ENDS; leaves of the tree are at least two.
TREE = (
    _WAIT
    + f"""
import random, threading
seed, depth, root = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
libc = __import__("ct" + "ypes").CDLL(None)  # stand-ins are known by that word
def session():
    if os.getpid() != os.getsid(0):
        os.setsid()
def group():
    if os.getpid() != os.getsid(0):
        os.setpgid(0, 0)
def daemonise():
    if os.fork(): os._exit(0)
    session()
    if os.fork(): os._exit(0)
def name():
    libc.prctl(15, random.choice([b"x) Z 1 1 1", b"(sd-pam)", b"kworker/0:1", b")", b"a b\\nc"]), 0, 0, 0)
def deaf():
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
def undumpable():
    libc.prctl(4, 0, 0, 0, 0)
def reaper():
    libc.prctl(36, 1, 0, 0, 0)
def namespaces():
    libc.unshare(0x30000000)  # of users and processes; refused in some places
def bare():
    os.chdir("/"); os.closerange(0, 256)
def sibling():  # clone(CLONE_PARENT): the child of whoever started this one, which may be the switch or the starter
    if libc.syscall(dict(x86_64=56, aarch64=220).get(os.uname().machine, -1), 0x8000 | 17, 0, 0, 0, 0) > 0: os._exit(0)
WAYS = (session, group, daemonise, name, deaf, undumpable, reaper, namespaces, bare, sibling)
def stop():
    while True: os.kill(os.getpid(), signal.SIGSTOP)
def rest():
    while True: signal.pause()
def headless():
    threading.Thread(target=lambda: time.sleep({LIFE_S})).start()
    libc.pthread_exit(None)
def without_environment():
    rest = "import signal; signal.alarm({LIFE_S})\\nwhile 1: signal.pause()"
    os.execve(sys.executable, ["[kthreadd]", "-IS", "-c", rest, *sys.argv[1:]], {{}})
def hop():
    until = time.monotonic() + {LIFE_S}
    while time.monotonic() < until:
        time.sleep(draw.choice((0.001, 0.01, 0.05)))
        if os.fork(): os._exit(0)
    os._exit(0)
ENDS = (stop, rest, headless, without_environment, hop)
def child(path):
    global draw
    draw = random.Random("%d %s" % (seed, path))
    signal.alarm({LIFE_S})
    if path:
        for way in draw.sample(WAYS, draw.randrange(4)):
            way()
        signal.alarm({LIFE_S})
    if len(path) < depth:
        for number in range(2 if len(path) < 2 else draw.choice((0, 1, 2))):
            time.sleep(draw.choice((0, 0, 0.01)))
            if os.fork() == 0:
                child(path + str(number))
                os._exit(0)
        if path and draw.random() < 0.6:
            os._exit(0)
    if path:
        draw.choice(ENDS)()
try:
    child("")
finally:
    if root == "leave":
        time.sleep(0.1)
        os._exit(3)
    rest()
"""
)

# The start of each of the following: a limit on the account's processes, and an end to all.
_BOUNDED = (
    _WAIT
    + f"""
resource.setrlimit(resource.RLIMIT_NPROC, (int(sys.argv[2]),) * 2)
def spawn():
    try: return os.fork()
    except OSError: return -1
signal.alarm({LIFE_S})
"""
)
# Each process forks whenever the limit lets it, and lives for a moment: with a limit of 120 about 1,500 a second.
BOMB = (
    _BOUNDED
    + """
root = os.getpid()
while time.monotonic() < until:
    born = time.monotonic()
    while os.getpid() == root or time.monotonic() - born < 0.08:
        if spawn() == 0:
            born = time.monotonic()
        time.sleep(0.01)
    os._exit(0)
"""
)
# Four chains, each process of which forks and leaves at once, in a session of its own; about 2,000 a second in all.
HOPPERS = (
    _BOUNDED
    + """
chains = 0
while chains < 4 and time.monotonic() < until:
    pid = spawn()  # zombies of an earlier test may count against the limit for a while
    chains += pid > 0
    if pid < 0:
        time.sleep(0.01)
    if pid == 0:
        while time.monotonic() < until:
            os.setsid() if os.getsid(0) != os.getpid() else None
            if spawn() > 0:
                os._exit(0)
        os._exit(0)
while True: signal.pause()
"""
)
# Runs a copy of its interpreter that is set-uid to another account; that child becomes the other one, for good.
OTHER_UID = (
    _WAIT
    + f"""
if os.fork() == 0:
    become = "import os, signal; os.setresuid(*[os.geteuid()] * 3); signal.alarm({LIFE_S}); os.setsid()\\n"
    os.execv(sys.argv[2], [sys.argv[2], "-IS", "-c", become + "while True: signal.pause()"])
signal.alarm({LIFE_S})
while True: signal.pause()
"""
)
# Kills, or stops, whatever it may, all the time; a process is not hit by its own kill(-1), so one is left.
ATTACK = (
    _BOUNDED
    + """
number = int(sys.argv[3])
while time.monotonic() < until:
    try: os.kill(-1, number)
    except OSError: pass
"""
)
# Traces whatever turns up at its account, before that can forbid it, and holds it a moment later.
TRACER = (
    _BOUNDED
    + """
ptrace = __import__("ct" + "ypes").CDLL(None).ptrace
seize, interrupt, delay = 0x4206, 0x4207, float(sys.argv[3])
held = {os.getpid()}
while time.monotonic() < until:
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        if pid not in held and ptrace(seize, pid, None, None) == 0:
            held.add(pid)
            time.sleep(delay)
            ptrace(interrupt, pid, None, None)
"""
)
