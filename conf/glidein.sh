#!/bin/bash
# An example of a glidein's last step: fetch Sailplane, check the node, start the startd in the foreground, pass signals on, report.
# Everything before it (the batch system, the proxy, what the factory knows) is in the file that it is given.
#
#   glidein.sh GLIDEIN_CONFIG WORK_DIR
#
# Keys of GLIDEIN_CONFIG that this script reads by itself:
#   SAILPLANE_RUNTIME   a directory with bin/sailplane-startd, or a tar.gz of one, as a path or an https address
#   SAILPLANE_SHA256    the tar.gz's sum; needed for an address
#   SAILPLANE_CONFIG    a file of settings that wins over what the script derives; optional
# All others: see docs/glidein.md. Exit status: 0 an ordered end, also of a pilot that found no job; else what the startd says.
set -u
umask 022
say() { printf '%s glidein.sh: %s\n' "$(date -u +%FT%TZ)" "$*" >&2; }
fail() { say "$2"; report ERROR "$1" "$2"; exit "${3:-1}"; }

# The result in the form that glidein frameworks collect; values are escaped.
escape() { sed -e 's/&/\&amp;/g' -e 's/</\&lt;/g' -e 's/>/\&gt;/g' -e 's/"/\&quot;/g'; }
report() {
    local metric=''
    [ "$1" = OK ] || metric="<metric name=\"failure\" ts=\"$(date -u +%FT%TZ)\" uri=\"local\">$(printf %s "$2" | escape)</metric>"
    printf '<?xml version="1.0"?>\n<OSGTestResult id="glidein.sh" version="4.3.1"><result><status>%s</status>%s</result><detail>%s</detail></OSGTestResult>\n' \
        "$1" "$metric" "$(printf %s "$3" | escape)" >otrb_output.xml
}

[ $# = 2 ] || { echo "usage: glidein.sh GLIDEIN_CONFIG WORK_DIR" >&2; exit 100; }
config=$(readlink -f "$1")
mkdir -p "$2" && cd "$2" || { echo "glidein.sh: $2 cannot be used" >&2; exit 1; }
work=$PWD
[ -r "$config" ] || fail Config "$1 cannot be read" 100
value() { awk -v key="$1" '$1 == key { $1 = ""; sub(/^[ \t]+/, ""); found = $0 } END { print found }' "$config"; }

# --- the environment: nothing of the batch system's or of another HTCondor reaches the daemons ------------------------
for name in $(compgen -e); do
    case $name in
        _CONDOR_* | _condor_* | CONDOR_INHERIT | CONDOR_PRIVATE_INHERIT | CONDOR_CONFIG | LD_PRELOAD | PYTHON*) unset "$name" ;;
    esac
done
export GSI_AUTHZ_CONF=/dev/null

# --- fetch ------------------------------------------------------------------------------------------------------------
runtime=$(value SAILPLANE_RUNTIME)
case $runtime in
    '') fail Config "SAILPLANE_RUNTIME is not in $1" 100 ;;
    https://*)
        sum=$(value SAILPLANE_SHA256)
        [ -n "$sum" ] || fail Config "SAILPLANE_SHA256 is needed for $runtime" 100
        curl --fail --silent --show-error --location --proto '=https' --max-time 600 --output runtime.tar.gz "$runtime" ||
            fail Network "$runtime could not be fetched"
        echo "$sum  runtime.tar.gz" | sha256sum --check --status || fail Corruption "$runtime is not what SAILPLANE_SHA256 says"
        runtime=$work/runtime.tar.gz ;;
esac
if [ -f "$runtime" ]; then
    mkdir -p runtime && tar -xzf "$runtime" -C runtime --no-same-owner || fail Corruption "$runtime could not be unpacked"
    runtime=$work/runtime
fi
startd=$runtime/bin/sailplane-startd
[ -x "$startd" ] || fail Config "$startd is not there" 100

# --- check: cheap, and before anything is started ---------------------------------------------------------------------
# 200 MB: logs, a proxy, and a first job's sandbox.
free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
[ "${free_kb:-0}" -ge 200000 ] || fail WN_Resource "only ${free_kb:-0} KB are free in $work"
proxy=$(value X509_USER_PROXY)
if [ -n "$proxy" ]; then
    [ -r "$proxy" ] || fail VO_Proxy "the pilot's proxy $proxy cannot be read"
    openssl x509 -in "$proxy" -noout -checkend 600 >/dev/null 2>&1 || fail VO_Proxy "the pilot's proxy ends within ten minutes"
fi
unset X509_USER_PROXY

# --- start, in the foreground of this script: readiness on a descriptor, signals passed on ----------------------------
own=$(value SAILPLANE_CONFIG)
rm -f ready && mkfifo ready || fail WN_Resource "no fifo can be made in $work"
_CONDOR_LOCAL_DIR=$work "$startd" --glidein-config "$config" ${own:+--config "$own"} --ready-fd 9 9>ready >startd.out 2>startd.err &
pilot=$!
exec 8<ready
# 120 s for it to be ready: validation asks the site's switch, which may be slow, several times.
# A batch system's TERM is the warning: the pilot ends in order. INT and QUIT mean at once. HUP comes with a lost terminal.
trap 'kill -TERM "$pilot" 2>/dev/null' TERM
trap 'kill -QUIT "$pilot" 2>/dev/null' INT QUIT
trap '' HUP
if read -r -t 120 line <&8 && [ "$line" = ready ]; then
    say "ready, pid $pilot"
else
    say "not ready, or not within 120 s"
    kill -QUIT "$pilot" 2>/dev/null
fi
# `wait` returns at each signal that has a trap; asked once more it knows the status of one that has ended.
while kill -0 "$pilot" 2>/dev/null; do wait "$pilot"; done
wait "$pilot"
status=$?

# --- report -----------------------------------------------------------------------------------------------------------
cat startd.out
if [ -r log/pilot-report.xml ]; then cp log/pilot-report.xml otrb_output.xml; else
    report ERROR WN_Resource "the startd ended with status $status: $(tail -n 3 startd.err | tr '\n' ' ')"
fi
[ -s startd.err ] && tail -n 20 startd.err >&2
case $status in
    0 | 99) say "ended in order"; exit 0 ;;
    *) say "the startd ended with status $status"; exit "$status" ;;
esac
