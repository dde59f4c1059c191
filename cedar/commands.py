"""Numbers of HTCondor's protocol: commands, remote system calls, answers, hold and vacate codes.

Only numbers and the version that we announce; who may call what is a server's table.
"""

from __future__ import annotations

import enum

# The newest release that was tested with; docs/versions.md lists what its peers do differently for it. A lower one
# would keep from us what we serve (DEACTIVATE_CLAIM_JOB_DONE since 24.7), a higher one would promise the unknown.
VERSION = "25.14.0"
VERSION_DATE = "2026-09-17"


def condor_version_text(version: str = VERSION) -> str:
    """The `$CondorVersion: ... $` string that peers parse."""
    return f"$CondorVersion: {version} {VERSION_DATE} BuildID: Sailplane $"


class Command(enum.IntEnum):
    """Command numbers, as an int at the head of a connection or in a request ad."""

    # collector
    UPDATE_STARTD_AD = 0
    UPDATE_SCHEDD_AD = 1
    UPDATE_MASTER_AD = 2
    QUERY_STARTD_ADS = 5
    QUERY_SCHEDD_ADS = 6
    QUERY_MASTER_ADS = 7
    QUERY_STARTD_PVT_ADS = 10
    UPDATE_SUBMITTOR_AD = 11
    QUERY_SUBMITTOR_ADS = 12
    INVALIDATE_STARTD_ADS = 13
    INVALIDATE_SCHEDD_ADS = 14
    INVALIDATE_MASTER_ADS = 15
    UPDATE_COLLECTOR_AD = 19
    QUERY_COLLECTOR_ADS = 20
    QUERY_ANY_ADS = 48
    UPDATE_NEGOTIATOR_AD = 49
    QUERY_NEGOTIATOR_ADS = 50
    QUERY_MULTIPLE_ADS = 53
    QUERY_MULTIPLE_PVT_ADS = 54
    UPDATE_AD_GENERIC = 58
    UPDATE_STARTD_AD_WITH_ACK = 60
    CCB_REGISTER = 67
    CCB_REQUEST = 68
    CCB_REVERSE_CONNECT = 69
    MERGE_STARTD_AD = 73
    QUERY_GENERIC_ADS = 74
    SHARED_PORT_CONNECT = 75
    SHARED_PORT_PASS_SOCK = 76
    # startd
    CONTINUE_CLAIM = 401
    SUSPEND_CLAIM = 402
    DEACTIVATE_CLAIM = 403
    DEACTIVATE_CLAIM_FORCIBLY = 404
    DEACTIVATE_CLAIM_JOB_DONE = 413
    GET_HISTORY = 429
    MATCH_INFO = 440
    ALIVE = 441
    REQUEST_CLAIM = 442
    RELEASE_CLAIM = 443
    ACTIVATE_CLAIM = 444
    VACATE_ALL_CLAIMS = 447
    GIVE_STATE = 448
    VACATE_CLAIM = 465
    DAEMON_OFF = 467
    DAEMON_OFF_FAST = 468
    VACATE_ALL_FAST = 474
    VACATE_CLAIM_FAST = 475
    DAEMON_OFF_PEACEFUL = 483
    DELEGATE_GSI_CRED_STARTD = 501
    DRAIN_JOBS = 512
    CANCEL_DRAIN_JOBS = 513
    COALESCE_SLOTS = 522
    REACTIVATE_CLAIM_CHECK = 554
    DEACTIVATE_FINAL_XFER = 561
    CA_AUTH_CMD = 1000
    CA_CMD = 1200
    # starter
    UPDATE_GSI_CRED = 487
    DELEGATE_GSI_CRED_STARTER = 500
    STARTER_VACATE_JOB = 1500
    CREATE_JOB_OWNER_SEC_SESSION = 1501
    START_SSHD = 1502
    STARTER_PEEK = 1503
    # schedd
    DELEGATE_GSI_CRED_SCHEDD = 499
    TRANSFER_QUEUE_REQUEST = 507
    GET_JOB_CONNECT_INFO = 509
    # shadow
    FILETRANS_UPLOAD = 61000
    FILETRANS_DOWNLOAD = 61001
    # every daemon
    RAISESIGNAL = 60000
    RECONFIG = 60004
    OFF_GRACEFUL = 60005
    OFF_FAST = 60006
    CHILDALIVE = 60008
    AUTHENTICATE = 60010
    NOP = 60011
    RECONFIG_FULL = 60012
    INVALIDATE_KEY = 60014
    OFF_PEACEFUL = 60015
    SET_PEACEFUL_SHUTDOWN = 60016
    NOP_READ = 60020
    NOP_WRITE = 60021
    NOP_ADMINISTRATOR = 60023
    NOP_DAEMON = 60026
    SEC_QUERY = 60040
    SET_FORCE_SHUTDOWN = 60041
    OFF_FORCE = 60042
    SET_READY = 60043
    QUERY_INSTANCE = 60045


class Reply(enum.IntEnum):
    """The int that answers most claim commands."""

    NOT_OK = 0
    OK = 1
    TRY_AGAIN = 2
    ERROR = 3


class ClaimReply(enum.IntEnum):
    """Answers to REQUEST_CLAIM beside NOT_OK and OK."""

    LEFTOVERS = 3
    LEFTOVERS_2 = 5
    SLOT_AD = 7


class ProxyReply(enum.IntEnum):
    """Answers to proxy updates (487, 500, 501)."""

    FAILED = 0
    OK = 1
    DECLINED = 2


class Syscall(enum.IntEnum):
    """Remote calls of the starter to its shadow."""

    GET_JOB_INFO = -63
    GET_FILE_INFO_NEW = -74
    JOB_EXIT = -65
    GET_USER_INFO = -76
    REGISTER_STARTER_INFO = -77
    BEGIN_EXECUTION = -78
    REGISTER_JOB_INFO = -81
    JOB_TERMINATION = -82
    DPRINTF_STATS = -84
    GET_DOCKER_CREDS = -85
    ACCESS = 1
    CHMOD = 7
    CHOWN = 8
    CLOSE = 10
    FCHMOD = 19
    FCHOWN = 20
    FSTAT = 24
    FSTATFS = 25
    FSYNC = 26
    FTRUNCATE = 27
    LINK = 52
    LSEEK = 54
    LSTAT = 55
    MKDIR = 58
    OPEN = 66
    READ = 71
    READLINK = 72
    RENAME = 78
    RMDIR = 79
    STAT = 108
    STATFS = 109
    SYMLINK = 111
    TRUNCATE = 113
    UNLINK = 115
    WRITE = 120
    UTIME = 242
    LCHOWN = 251
    ULOG = 284
    GET_JOB_ATTR = 285
    SET_JOB_ATTR = 286
    CONSTRAIN = 287
    GET_SEC_SESSION_INFO = 288
    PREAD = 289
    PWRITE = 290
    SWRITE = 291
    RMALL = 292
    GETLONGDIR = 295
    GETDIR = 296
    WHOAMI = 297
    WHOAREYOU = 298
    SREAD = 299
    GETCREDS = 302
    GET_DELEGATED_PROXY = 303
    EVENT_NOTIFICATION = 304
    REQUEST_GUIDANCE = 305


class OpenFlag(enum.IntFlag):
    """How OPEN's flags stand on the wire, whatever they are on this system."""

    WRONLY = 0x0001
    RDWR = 0x0002
    CREAT = 0x0100
    TRUNC = 0x0200
    EXCL = 0x0400
    APPEND = 0x1000


class ExitReason(enum.IntEnum):
    """Second argument of job_exit."""

    JOB_EXITED = 100
    JOB_KILLED = 102
    JOB_COREDUMPED = 103
    JOB_SHOULD_REQUEUE = 107
    JOB_NOT_STARTED = 108
    JOB_SHOULD_HOLD = 112
    JOB_EXITED_AND_CLAIM_CLOSING = 115


class HoldCode(enum.IntEnum):
    """Why a job is held, and (1000 and above) why it is put back without holding."""

    USER_REQUEST = 1
    CORRUPTED_CREDENTIAL = 4
    FAILED_TO_CREATE_PROCESS = 6
    UNABLE_TO_OPEN_OUTPUT = 7
    UNABLE_TO_OPEN_INPUT = 8
    UNABLE_TO_OPEN_OUTPUT_STREAM = 9
    DOWNLOAD_FILE_ERROR = 12
    UPLOAD_FILE_ERROR = 13
    IWD_ERROR = 14
    MISSED_DEFERRED_EXECUTION = 20
    STARTD_HELD_JOB = 21
    GLEXEC_CHOWN_SANDBOX_TO_USER = 28
    MAX_TRANSFER_INPUT_SIZE = 32
    MAX_TRANSFER_OUTPUT_SIZE = 33
    JOB_OUT_OF_RESOURCES = 34
    INVALID_DOCKER_IMAGE = 35
    FAILED_TO_CHECKPOINT = 36
    PRE_SCRIPT_FAILED = 43
    POST_SCRIPT_FAILED = 44
    SINGULARITY_TEST_FAILED = 45
    JOB_DURATION_EXCEEDED = 46
    JOB_EXECUTE_EXCEEDED = 47
    HOOK_GROUP = 49


class VacateCode(enum.IntEnum):
    """VacateReasonCode: the job goes back to idle."""

    SHADOW_EXCEPTION = 1002
    JOB_NOT_STARTED = 1003
    USER_VACATE = 1004
    STARTER_ERROR = 1007
    RECONNECT_FAILED = 1008
    CLAIM_DEACTIVATED = 1009
    STARTD_VACATE_COMMAND = 1010
    STARTD_PREEMPT_EXPRESSION = 1011
    STARTD_SHUTDOWN = 1013
    STARTD_DRAINING = 1014
    CLAIM_RELEASED = 1017
    STARTD_RANK = 1018
    STARTD_PRIORITY = 1019
    SCHEDD = 1022
    JOB_REMOVED = 1023
    SCRATCH_DIRECTORY = 1024
    SUCCESSFUL_CHECKPOINT = 1025


class ActivationRefusal(enum.IntEnum):
    """Why an activation is refused (VacateReasonCode in its answer)."""

    BAD_REQUEST = 1026
    NO_MATCH = 1027
    STILL_CLEANING = 1028
    WORKLIFE_OVER = 1029
    PREEMPTED = 1030
    BROKEN = 1031
    NOT_IDLE = 1032
    UNCLAIMED = 1033
    CLAIM_NOT_FOUND = 1034
    OLD_CLAIM = 1035
    UNHEALTHY = 1036


class HoldSubcode(enum.IntEnum):
    """Subcodes; -1000 and below mean "put back to idle", not "hold"."""

    OUT_OF_MEMORY = 102
    OUT_OF_DISK = 104
    REQUEUE = -1000
    PLUGIN_NOT_FOUND = -1001
    PLUGIN_NOT_OPERATIONAL = -1002
    PLUGIN_EXEC_FAILED = -1003
    PLUGIN_NO_RESULT = -1004
