"""The one typed table of the knobs that Sailplane reads, long because it is whole; `pilot.configuration` fills it.

HTCondor's names; knobs that HTCondor does not have start with SAILPLANE_. The documentation's table is made from it.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path

import attrs

from pilot.knobs import (
    Knob,
    SettingsError,
    choice,
    expression,
    integer,
    knob,
    knobs_of,
    names,
    number,
    path,
    pattern,
    seconds,
    size,
    text,
    variables,
    yes_or_no,
)
from pilot.securityknobs import SecuritySettings
from pilot.toolplaces import tool

__all__ = ["KNOBS", "Settings", "SettingsError"]

_HERE = Path(__file__).resolve().parent
# As stock HTCondor 25 (execute-side reference 4.5).
_THREAD_VARIABLES = (
    "CUBACORES, GOMAXPROCS, JULIA_NUM_THREADS, MKL_NUM_THREADS, NUMEXPR_NUM_THREADS, OMP_NUM_THREADS, OMP_THREAD_LIMIT,"
    " OPENBLAS_NUM_THREADS, PYTHON_CPU_COUNT, ROOT_MAX_THREADS, TF_LOOP_PARALLEL_ITERATIONS, TF_NUM_THREADS"
)
_HOST = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"


def _host() -> str:
    return platform.node() or "localhost"


def wrapper_dir() -> Path:
    """The wrapper that comes with this code."""
    return _HERE.parent / "jobwrapper"


@attrs.frozen(kw_only=True)
class Settings(SecuritySettings):
    """Every knob, checked. A field's name is its knob's name in lower case."""

    local_dir: Path = knob(
        "",
        path(),
        "The directory that the other directories default to.",
        unset="the directory that the daemon is started in",
        compute=Path.cwd,
    )
    log: Path = knob("$(LOCAL_DIR)/log", path(), "Directory of the daemons' logs.")
    startd_log: Path = knob("$(LOG)/StartLog", path(), "The startd's log.")
    starter_log: Path = knob(
        "$(LOG)/StarterLog",
        path(),
        "The log of all starters. What a slot's jobs were stands in a file of this name with the slot's behind it"
        " (StarterLog.slot1_1), in HTCondor's words, which scripts of glidein pools count jobs by.",
    )
    max_startd_log: int = knob("10 M", size(), "The size at which the startd's log is renamed to .old; 0 is never.")
    max_starter_log: int = knob("10 M", size(), "The same for each of the starters' logs.")
    max_procd_log: int = knob("10 M", size(), "The same for procd's log.")
    max_pool_log: int = knob("10 M", size(), "The same for the embedded pool's log.")
    execute: Path = knob(
        "$(LOCAL_DIR)/execute",
        path(),
        "Directory below which the jobs' sandboxes are made; other accounts must reach it.",
    )
    spool: Path = knob("$(LOCAL_DIR)/spool", path(), "Directory of the embedded pool's stored input and output files.")
    sailplane_run_dir: Path = knob(
        "$(LOCAL_DIR)/run",
        path(),
        "Directory (0700) of local sockets, credentials and state of the running daemons.",
    )
    collector_host: str | None = knob(
        "",
        text(optional=True),
        "The pool: host, host:port or <address>; the embedded pool's is in its file collector_address.",
        unset="no pool, nothing is advertised",
    )
    sec_token_directory: Path = knob(
        "$(LOCAL_DIR)/tokens.d",
        path(),
        "Directory of the tokens that this daemon shows to the pool; files 0600.",
    )
    sec_password_directory: Path = knob(
        "$(LOCAL_DIR)/passwords.d",
        path(),
        "Directory of the signing keys by which this daemon checks tokens; files 0600.",
    )
    trust_domain: str = knob(
        "",
        text(r"[\x21-\x7e]+", "a name without blanks"),
        "The issuer of tokens.",
        unset="the host's name",
        compute=_host,
    )
    uid_domain: str = knob(
        "",
        text(_HOST, "a host or domain name"),
        "The domain of the users' names.",
        unset="the host's name",
        compute=_host,
    )
    network_interface: str = knob(
        "127.0.0.1",
        text(r"[0-9a-fA-F:.]+|\*", "an IP address, or *"),
        "The address that daemons listen on and advertise; *: they listen on all, and the startd advertises the one by"
        " which it reaches its pool.",
    )
    startd_name: str = knob(
        "",
        text(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,200}", "letters, digits and ._@-"),
        "The startd's name; slots are slot1@NAME, slot1_1@NAME.",
        unset="the host's name",
        compute=_host,
    )
    collector_address_file: Path = knob(
        "$(LOG)/.collector_address",
        path(),
        "The file in which a collector of this machine has left its address, where COLLECTOR_HOST has port 0.",
    )
    startd_address_file: Path = knob(
        "$(LOG)/.startd_address", path(), "The file by which tools on this machine find the startd."
    )
    shared_port_daemon_ad_file: Path = knob(
        "$(LOG)/shared_port_ad",
        path(),
        "The file in which condor_shared_port leaves its address, for a startd that its master puts behind it.",
    )
    not_responding_timeout: float = knob(
        "3600", seconds(1), "Time without a sign of life after which a condor_master ends a daemon."
    )
    startd_not_responding_timeout: float = knob(
        "$(NOT_RESPONDING_TIMEOUT)", seconds(1), "The same for the startd alone, as the startd tells its master."
    )
    startd_port: int = knob("0", integer(0, 65535), "The startd's one TCP port; 0 lets the kernel choose.")
    tcp_forwarding_host: str | None = knob(
        "",
        text(rf"{_HOST}|[0-9a-fA-F:.]+", "a host or an IP address", optional=True),
        "The address to advertise where another host (a router) forwards connections to this one.",
        unset="NETWORK_INTERFACE",
    )
    ccb_address: str | None = knob(
        "",
        text(optional=True),
        "Brokers (collectors) that this startd is reached through where nobody can connect to it, as COLLECTOR_HOST;"
        " usually $(COLLECTOR_HOST).",
        unset="none: it is reached at its own port",
    )
    ccb_heartbeat_interval: float = knob(
        "300", seconds(0), "Time between two signs of life to and from a broker; 0: none are sent, none are missed."
    )
    private_network_name: str | None = knob(
        "",
        text(r"[A-Za-z0-9._-]{1,200}", "letters, digits and ._-", optional=True),
        "The network in which this startd can be connected to: peers of the same PRIVATE_NETWORK_NAME ask no broker.",
        unset="nobody can",
    )
    num_cpus: int | None = knob(
        "",
        integer(1, 65536, optional=True),
        "Cores of all slots together.",
        unset="what this process may use",
    )
    memory: int | None = knob(
        "", integer(1, optional=True), "Memory of all slots together in MB.", unset="the machine's memory"
    )
    disk: int | None = knob(
        "",
        integer(0, optional=True),
        "Disk of all slots together in KB.",
        unset="what is free below EXECUTE",
    )
    num_slots: int | None = knob(
        "",
        integer(1, 1024, optional=True),
        "Slots that the machine is divided into evenly, where no NUM_SLOTS_TYPE_N is set; partitionable ones, unless"
        " SLOT_TYPE_0_PARTITIONABLE is False.",
        unset="one slot with everything",
    )
    machine_resource_names: tuple[str, ...] = knob(
        "",
        names(),
        "Custom resources that count, of those that MACHINE_RESOURCE_NAME settings describe.",
        unset="all of them",
    )
    startd_detect_gpus: str = knob(
        "True",
        text(),
        "Offers the GPUs that `nvidia-smi -L` lists, where no MACHINE_RESOURCE_GPUs or MACHINE_RESOURCE_INVENTORY_GPUs"
        " is set; False: does not look.",
    )
    auto_set_nvidia_visible_devices: bool = knob(
        "True",
        yes_or_no(),
        "Gives jobs NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES with the full ids of their GPUs, 'none' where they"
        " have none.",
    )
    modify_request_expr_requestcpus: str = knob(
        "quantize(RequestCpus,{1})",
        expression(),
        "What a job's RequestCpus becomes when a part of a partitionable slot is made for it, if the job then fits"
        " still; MY is the job.",
    )
    modify_request_expr_requestmemory: str = knob(
        "quantize(RequestMemory,{128})", expression(), "The same for RequestMemory, in MB."
    )
    modify_request_expr_requestdisk: str = knob(
        "quantize(RequestDisk,{1024})", expression(), "The same for RequestDisk, in KB."
    )
    must_modify_request_exprs: bool = knob(
        "False", yes_or_no(), "Refuses a job that fits as it asked, but not with its request so changed."
    )
    start: str = knob("TRUE", expression(), "Jobs that this startd is willing to run.")
    default_draining_start_expr: str | None = knob(
        "",
        expression(optional=True),
        "Stands in the place of START while a startd drains gracefully, where the drain request (condor_drain -start)"
        " brings none: for jobs that fill its time.",
        unset="no job is taken",
    )
    rank: str = knob("0.0", expression(), "How much this startd prefers a job.")
    is_owner: str = knob(
        "FALSE",
        expression(),
        "Whether the machine is its owner's, and not for jobs: a slot without a job is Owner then. (START =?= False)"
        " says that where START is false for any job.",
    )
    want_suspend: str = knob("FALSE", expression(), "Whether a job is rather suspended than preempted.")
    suspend: str = knob("FALSE", expression(), "When a running job is suspended, if WANT_SUSPEND is true.")
    continue_: str = knob("TRUE", expression(), "When a job that was suspended by SUSPEND goes on.")
    preempt: str = knob("FALSE", expression(), "When a job has to go, after its retirement time.")
    want_vacate: str = knob(
        "TRUE", expression(), "Whether a job that PREEMPT ends has its signal and its vacate time; if not it is killed."
    )
    kill: str = knob("FALSE", expression(), "When a job that is being vacated is killed before its time is over.")
    want_hold: str | None = knob(
        "",
        expression(optional=True),
        "Whether a job that PREEMPT ends is put on hold, with code 21, and not back to idle.",
        unset="never",
    )
    want_hold_reason: str | None = knob(
        "", expression(optional=True), "The hold reason of WANT_HOLD, text.", unset="words that name WANT_HOLD"
    )
    want_hold_subcode: str | None = knob(
        "", expression(optional=True), "The hold subcode of WANT_HOLD, a number above -1000.", unset="0"
    )
    want_suspend_vanilla: str | None = knob(
        "", expression(optional=True), "As WANT_SUSPEND, and wins over it.", unset="WANT_SUSPEND counts"
    )
    suspend_vanilla: str | None = knob("", expression(optional=True), "As SUSPEND.", unset="SUSPEND counts")
    continue_vanilla: str | None = knob("", expression(optional=True), "As CONTINUE.", unset="CONTINUE counts")
    preempt_vanilla: str | None = knob("", expression(optional=True), "As PREEMPT.", unset="PREEMPT counts")
    want_vacate_vanilla: str | None = knob("", expression(optional=True), "As WANT_VACATE.", unset="WANT_VACATE counts")
    kill_vanilla: str | None = knob("", expression(optional=True), "As KILL.", unset="KILL counts")
    polling_interval: float = knob(
        "5", seconds(0.1), "Time between two looks at these policies; each update of a job's usage is one, too."
    )
    match_timeout: float = knob(
        "120", seconds(0.1), "Time that a slot stays Matched for a schedd that does not come to claim it."
    )
    startd_attrs: tuple[str, ...] = knob(
        "",
        names(),
        "Further settings that become attributes of the slots' ads, each a ClassAd expression (text in quotes).",
        unset="none",
    )
    startd_slot_attrs: tuple[str, ...] = knob(
        "",
        names(),
        "Attributes of each slot that every slot's ad has, as slot1_State; glidein pools end pilots by them.",
        unset="none",
    )
    startd_job_attrs: tuple[str, ...] = knob(
        "",
        names(),
        "Attributes of a job that its slot's ad has while it runs; none takes the place of the slot's own.",
        unset="none",
    )
    startd_latch_exprs: tuple[str, ...] = knob(
        "",
        names(),
        "Attributes, or settings that become attributes, whose whole number and the time since when it is so stand in"
        " the slots' ads, as NameValue and NameTime.",
        unset="none",
    )
    statistics_to_publish_list: str = knob(
        "",
        text(r"[A-Za-z0-9_:, .-]*", "names with commas or blanks between them"),
        "What the ads tell besides the counts of jobs: JobBusyTime, the seconds of an activation, and JobDuration, that"
        " of a job (Count, Avg, Min, Max; Recent: of the last 20 minutes).",
        unset="counts alone",
    )
    startd_cron_joblist: str = knob(
        "",
        text(r"[A-Za-z0-9_, -]*", "names of letters, digits, - and _"),
        "Programs that the startd runs beside the jobs, and whose answers stand in the slots' ads; each is described by"
        " STARTD_CRON_<NAME>_EXECUTABLE, _MODE, _PERIOD and others: see cron.md.",
        unset="none",
    )
    startd_cron_max_job_load: float = knob(
        "0.1",
        number(0, 1000),
        "How much such programs may load the machine at once, by their _JOB_LOAD (0.01); more wait for their turn.",
    )
    startd_cron_autopublish: str = knob(
        "if_changed",
        choice("never", "always", "if_changed"),
        "Whether such an answer goes to the collector at once, or with the next update.",
    )
    advertise_cmr_uptime_seconds: bool = knob(
        "False",
        yes_or_no(),
        "Whether slots show the bare sums of STARTD_CRON_<NAME>_METRICS, as UptimeGPUsSeconds, beside the averages.",
    )
    update_interval: float = knob("300", seconds(1), "Time between two updates of the ads at the collector.")
    alive_interval: float = knob("300", seconds(1), "Time between two signs of life of a claim, as the pool states it.")
    max_claim_alives_missed: int = knob("6", integer(1, 1000), "Signs of life that may be missing before a claim ends.")
    claim_worklife: float = knob("1200", seconds(-1), "Age of a claim after which it takes no new job; -1 is never.")
    check_reactivate_after_checkpoint: bool = knob(
        "True",
        yes_or_no(),
        "Whether a job that has sent a checkpoint of its own goes back to the queue where its claim would take no"
        " further job: CLAIM_WORKLIFE is over, the slot is drained, a better claim waits.",
    )
    starter_update_interval: float = knob("300", seconds(1), "Time between two updates of a running job's usage.")
    starter_file_xfer_stall_timeout: float = knob(
        "3600", seconds(1), "Time without any progress after which a transfer of a job's files is given up."
    )
    max_transfer_input_mb: int = knob(
        "-1",
        integer(-1, 1 << 40),
        "Most input in MB of a job that says nothing itself (max_transfer_input_mb); -1: what its slot's disk holds.",
    )
    max_transfer_output_mb: int = knob(
        "-1",
        integer(-1, 1 << 40),
        "Most output in MB of a job that says nothing itself (max_transfer_output_mb); -1: SAILPLANE_MAX_OUTPUT_BYTES.",
    )
    enable_url_transfers: bool = knob("True", yes_or_no(), "Moves files of jobs from and to URLs, by plugins.")
    filetransfer_plugins: str | None = knob(
        "",
        text(optional=True),
        "Programs that move files from and to URLs at the job's account, as absolute paths, with commas or blanks; by"
        " HTCondor's multi-file protocol. Of two for one kind of URL the last is used.",
        unset="curl_plugin.py in SAILPLANE_WRAPPER_DIR, for http and https, where there is a curl",
    )
    max_file_transfer_plugin_lifetime: float = knob(
        "72000", seconds(1), "Longest time that one run of such a program may take."
    )
    starter_initial_update_interval: float = knob("8", seconds(0), "Time from a job's start to its first update.")
    starter_job_environment: tuple[tuple[str, str], ...] = knob(
        "",
        variables(),
        "Variables for every job, below those of its own. Of the daemon's environment a job gets nothing.",
        unset="none",
    )
    starter_num_threads_env_vars: str = knob(
        _THREAD_VARIABLES,
        text(r"[A-Za-z0-9_, ]*", "names of variables"),
        "Variables that limit a program's threads; set to the slot's cores where the job does not set them.",
    )
    user_job_wrapper: Path | None = knob(
        "",
        path(optional=True),
        "A program that every job is run by, at the job's account: it gets the job's path and arguments, and must exec"
        " them.",
        unset="none",
    )
    # HTCondor's default is FALSE since 25.11. Here they have the job's account and nothing that the job has not.
    starter_allow_job_pre_and_post_cmd: str = knob(
        "TRUE",
        expression(),
        "Whether +PreCmd and +PostCmd of a job are run, evaluated in the slot's ad (MY) and the job's (TARGET); else"
        " they are ignored, and StarterLog says so.",
    )
    job_renice_increment: str = knob(
        "0",
        expression(),
        "How nice a job is, from 0 to 19, evaluated in the job's ad; 10 where that is no number.",
    )
    starter_rlimit_as: str = knob(
        "undefined",
        expression(),
        "Most address space of each of a job's processes in MB, evaluated in the job's ad; no limit where that is no"
        " number above 0.",
    )
    enforce_cpu_affinity: bool = knob(
        "False", yes_or_no(), "Binds each job to cores of its own. As ASSIGN_CPU_AFFINITY, which replaced it."
    )
    assign_cpu_affinity: bool = knob(
        "False",
        yes_or_no(),
        "Binds each job to cores of its own, as many as its slot has; a job that wants to can take them all again.",
    )
    enable_chirp: bool = knob("True", yes_or_no(), "Lets jobs reach their submit side by chirp.")
    enable_chirp_io: bool = knob(
        "True", yes_or_no(), "Lets jobs that ask for it (WantIOProxy) read and write files at the submit side by chirp."
    )
    enable_chirp_updates: bool = knob(
        "True",
        yes_or_no(),
        "Lets jobs that ask for it (WantRemoteUpdates) read and set attributes of their ads by chirp.",
    )
    enable_chirp_delayed: bool = knob(
        "True", yes_or_no(), "Lets jobs set attributes that go out with the next update of their usage."
    )
    chirp_delayed_update_prefix: str = knob(
        "Chirp*",
        text(r"[A-Za-z0-9_*, ]*", "names with *"),
        "Names of the attributes that jobs may set that way; * stands for anything.",
    )
    chirp_delayed_update_max_attrs: int = knob("100", integer(0, 10000), "Most attributes that one job sets that way.")
    sec_credential_refresh: float = knob(
        "300",
        seconds(0),
        "Time between two looks for renewed tokens of a running job; 0: they are not renewed. Only a token that has"
        " changed costs a call of the switch.",
    )
    sec_credential_directory_oauth: Path | None = knob(
        "",
        path(optional=True),
        "Directory of the users' tokens at the embedded pool, as OWNER/SERVICE.use; files 0600, whoever renews them"
        " replaces them.",
        unset="the pool gives no tokens",
    )
    killing_timeout: float = knob(
        "30", seconds(0), "Time that a hard kill may take before the starter itself is killed."
    )
    machinemaxvacatetime: float = knob(
        "600", seconds(0), "Longest time that a job gets to end by itself when it must go."
    )
    maxjobretirementtime: str = knob(
        "0", expression(), "Seconds that a running job may go on when it must go, counted from its start."
    )
    shutdown_graceful_timeout: float = knob("1800", seconds(0), "Longest time of an orderly shutdown.")
    glidein_toretire: int | None = knob(
        "", integer(0, optional=True), "Unix time from which on the pilot takes no new job.", unset="never"
    )
    glidein_todie: int | None = knob(
        "",
        integer(0, optional=True),
        "Unix time at which the pilot begins to end; leave SHUTDOWN_GRACEFUL_TIMEOUT after it.",
        unset="never",
    )
    startd_noclaim_shutdown: float = knob(
        "0", seconds(0), "Time without a claim after which the startd ends; 0: never."
    )
    sailplane_min_free_disk: int = knob(
        "200 M", size(), "Free space below EXECUTE under which no job matches; 0: not looked at."
    )
    sailplane_black_hole_jobs: int = knob(
        "5",
        integer(0, 1000),
        "Jobs in a row that the node itself failed after which none matches for 5 minutes, then longer; 0: never.",
    )
    daemon_shutdown: str = knob("FALSE", expression(), "The startd ends gracefully once this holds in its slot's ad.")
    daemon_shutdown_fast: str = knob("FALSE", expression(), "The startd ends at once when this holds in its slot's ad.")
    glexec: Path | None = knob(
        "/usr/sbin/glexec",
        tool(),
        "The identity switch's command, when SAILPLANE_SWITCH is glexec; NONE: the site has none; auto, OSG, glite:"
        " where glidein scripts look for it.",
    )
    glidein_glexec_use: str = knob(
        "REQUIRED",
        choice("required", "optional", "never"),
        "What the pool wants of glexec, by glideinWMS's table, when SAILPLANE_SWITCH is glexec. OPTIONAL falls back to"
        " no switch only at the start, and only where there is no GLEXEC; NEVER uses none.",
    )
    glidein_require_glexec_use: bool = knob(
        "False", yes_or_no(), "What the site wants: True refuses a pilot that would run without glexec."
    )
    glexec_retries: int = knob(
        "3", integer(0, 100), "Retries after a call of the switch that failed for a passing reason."
    )
    glexec_retry_delay: float = knob("5", seconds(0), "Unit of the random delay between two such calls.")
    glexec_hold_on_initial_failure: bool = knob(
        "True",
        yes_or_no(),
        "Holds a job (code 28) whose user the site refuses before it has started; False sends it back to idle. The user"
        " is not matched here for a while in either case.",
    )
    sailplane_switch_patience: float = knob(
        "120",
        seconds(0),
        "Time before a job's start to find out whether its user is refused or the site is down. Calls of a job that has"
        " started are tried until its proxy ends.",
    )
    sailplane_switch: str = knob(
        "glexec",
        choice("glexec", "userns", "none", "glexec-log-only"),
        "How a job gets an account of its own: 'glexec' its user's; 'userns' one of the daemon's sub-uids (package"
        " uidmap); 'none' runs it at the daemon's own account and isolates nothing; 'glexec-log-only' the same where"
        " the site's glexec authorises and logs each user, but changes no account (GLIDEIN_Glexec_Use = OPTIONAL).",
    )
    sailplane_shared_account: bool = knob(
        "False",
        yes_or_no(),
        "With SAILPLANE_SWITCH = none: lets jobs of several users run at the one account, where each can read and kill"
        " the others. Without it a pilot serves the first user that comes.",
    )
    sailplane_switch_deadline: float = knob(
        "60", seconds(1), "Time that one call of the switch may take until the far side answers."
    )
    sailplane_certificates_dir: Path = knob(
        "/etc/grid-security/certificates",
        path(),
        "Directory of trusted CA certificates, CRLs and signing policies.",
    )
    sailplane_pilot_proxy: Path | None = knob(
        "$ENV(X509_USER_PROXY:)",
        path(optional=True),
        "The pilot's own proxy, by which glexec authorises the caller.",
        unset="the pilot has none",
    )
    sailplane_pilot_proxy_source: Path | None = knob(
        "",
        path(optional=True),
        "A file in which somebody renews the pilot's proxy; a longer one is taken over into SAILPLANE_PILOT_PROXY.",
        unset="none",
    )
    sailplane_pilot_myproxy: str | None = knob(
        "",
        text(r"[^@\s]+@[A-Za-z0-9._-]+(:[0-9]{1,5})?", "USERNAME@host or USERNAME@host:port", optional=True),
        "Where MyProxy has the pilot's credential; it is asked six hours before the proxy ends, by showing that.",
        unset="none",
    )
    sailplane_proxy_margin: float = knob(
        "120",
        seconds(0),
        "A job is stopped this long before its proxy ends, while its output can still be fetched.",
    )
    sailplane_proxy_key: str = knob(
        "ec",
        choice("ec", "rsa"),
        "Kind of the keys that are made for delegated proxies: 'ec' (P-256), or 'rsa' (2048 bits) where jobs use tools"
        " that know nothing else.",
    )
    sailplane_on_identity_change: str = knob(
        "keep",
        choice("keep", "hold", "stop"),
        "What follows when a renewed proxy is of another identity, CA or primary FQAN than the old one: 'keep' the old"
        " one and go on; 'hold' the job, with its output fetched; 'stop' it, to be tried again with the new one.",
    )
    sailplane_voms_dir: Path = knob(
        "/etc/grid-security/vomsdir",
        path(),
        "Directory of the VOMS servers (VO/HOST.lsc, or their certificates) whose attribute certificates are believed.",
    )
    sailplane_kill_jitter: float = knob(
        "2",
        seconds(0),
        "A call of the switch that signals one job waits a random time up to this, to spare the site; 0: no windows.",
    )
    sailplane_kill_window: float = knob(
        "10",
        seconds(0),
        "Calls for several jobs at once are spread over the jitter times their number, up to this (longer when"
        " SAILPLANE_SWITCH_RATE needs it), and never over more than half the time that a kill may take.",
    )
    sailplane_switch_rate: float = knob(
        "2",
        number(0, 1000),
        "Calls a second by which this pilot signals jobs, in the long run; exceeded only when a job would not end in"
        " time; 0: no limit.",
    )
    sailplane_switch_burst: int = knob(
        "8", integer(1, 10000), "Such calls that may come at once after a pause, above the rate."
    )
    sailplane_full_scan_interval: float = knob(
        "300",
        seconds(1),
        "Time between two full scans of the machine that check what is known of the jobs' processes.",
    )
    sailplane_dedicated_accounts: re.Pattern[str] | None = knob(
        "",
        pattern(optional=True),
        "Accounts, by name, that serve one job at a time: whatever runs there during a job is the job's, and is killed"
        " with it.",
        unset="none: processes of the job's account that are no descendants are reported and left alone",
    )
    sailplane_cgroup: Path | None = knob(
        "",
        path(optional=True),
        "The cgroup (v2) below which a group for each job is made, if this account may make groups there.",
        unset="the parent of the daemon's own group, or this group, where that is allowed",
    )
    sailplane_wrapper_python: Path = knob(
        "/usr/bin/python3", path(), "The interpreter (3.6 or later) for what runs at the job's account."
    )
    sailplane_wrapper_dir: Path = knob(
        "",
        path(),
        "The directory of the programs that run at the job's account; readable by every account.",
        unset="the installed package jobwrapper",
        compute=wrapper_dir,
    )
    sailplane_starter_command: str = knob(
        "",
        text(),
        "For debugging: a command that runs each job's starter in a process of its own, as 'sailplane-starter --one' or"
        " 'strace -f -o /tmp/starter.trace sailplane-starter --one'.",
        unset="starters are forked by the spawner",
    )
    sailplane_limits_interval: float = knob(
        "5",
        seconds(0.1),
        "Time between two looks at a job's memory and processes; less where a limit is near.",
    )
    periodic_expr_interval: float = knob(
        "60",
        seconds(0),
        "How often a job's shadow looks at its policies, so how late it may be to hold a job whose allowed_job_duration"
        " or allowed_execute_duration is over. After that and 5 s more the execution point holds the job itself.",
    )
    sailplane_memory_limit_percent: int = knob(
        "100",
        integer(0, 1000),
        "How much of its slot's memory a job may use before it is held; 0: it is not held for memory.",
    )
    sailplane_disk_limit_percent: int = knob(
        "100",
        integer(0, 1000),
        "How much of its slot's disk a job's sandbox may take before the job is held; 0: it is not held for disk.",
    )
    sailplane_disk_interval: float = knob(
        "300",
        seconds(0),
        "Shortest time between two calls of the switch that measure a job's sandbox; 0: it is never measured.",
    )
    sailplane_max_processes: int = knob(
        "2048",
        integer(0, 1 << 22),
        "Most processes that a job may have before it is held; 0: no limit. Where the kernel can bound one job by"
        " itself (a cgroup, or 'userns') it may have four times as many tasks, since threads count there.",
    )
    sailplane_left_overs: str = knob(
        "remove",
        choice("remove", "report", "ignore"),
        "What becomes of files and System V IPC that a job has left outside its sandbox, at its account: 'remove' them"
        " if that account has no other job and no other process on the node, and else 'report' them; or never look.",
    )
    sailplane_max_output_bytes: int = knob("100 G", size(), "Most bytes that a job may bring back.")
    sailplane_max_output_files: int = knob("100000", integer(1), "Most files that a job may bring back.")
    sailplane_pool_dir: Path = knob(
        "$(LOCAL_DIR)/pool", path(), "Directory of the embedded pool's queue, keys and tokens."
    )
    sailplane_pool_socket: Path = knob(
        "$(SAILPLANE_POOL_DIR)/socket",
        path(),
        "The socket by which users of this machine reach the embedded pool.",
    )
    sailplane_pool_port: int = knob("0", integer(0, 65535), "The embedded pool's TCP port; 0 lets the kernel choose.")
    sailplane_pool_owner_from_proxy: bool = knob(
        "False",
        yes_or_no(),
        "Takes a job's owner from its proxy's name, not from the account; for a demo at one account only.",
    )
    sailplane_pool_credential: Path | None = knob(
        "",
        path(optional=True),
        "The pool's own certificate or proxy with its key (0600), by which MyProxy servers know it as a renewer.",
        unset="the pool renews nothing by itself",
    )
    sailplane_pool_myproxy_servers: str | None = knob(
        "",
        text(optional=True),
        "MyProxy servers (host or host:port) that the pool may ask for jobs that name one (MyProxyHost).",
        unset="none",
    )
    sailplane_pool_lease: float = knob("300", seconds(1), "Time without contact after which the pool runs a job again.")

    attributes: Mapping[str, str] = attrs.field(factory=dict)
    """The expressions of STARTD_ATTRS by name."""
    family: Mapping[str, str] = attrs.field(factory=dict)
    """The texts of all settings whose names begin with one of FAMILIES, by upper-case name."""
    spelled: Mapping[str, str] = attrs.field(factory=dict)
    """Those names as they were written, by upper-case name."""
    source: Path | None = None
    warnings: tuple[str, ...] = ()


KNOBS: Mapping[str, Knob] = knobs_of(Settings)
