#!/bin/sh
# glexec: run a command under the account that the site maps a credential to.
# Made by the installation of Sailplane's glexec; the settings are in @CONF@.
#
# This shell only starts sudo and becomes the watcher (front.py). It does not wait itself: in every
# POSIX shell $? is 143 both for `exit 143` and for death by SIGTERM, and neither `jobs` nor the
# shell's messages tell them apart for all signals in dash and in bash. Python takes the exact
# status, and because sudo is already running while Python starts, it costs no time (about 6 ms
# otherwise). The child is ours across the exec, so the watcher can reap it.
#
# The watcher and the root part share the *offset* of descriptor $word as a channel: see word.py.

conf='@CONF@'
library='@LIBRARY@'
version='@VERSION@'

case ${1-} in
-h | --help)
    echo "usage: glexec COMMAND [ARGUMENT...]"
    echo "Runs COMMAND under the account that GLEXEC_CLIENT_CERT is mapped to; without COMMAND"
    echo "only authorises and refreshes GLEXEC_TARGET_PROXY."
    exit 0
    ;;
-v | --version)
    echo "glexec $version (Sailplane)"
    exit 0
    ;;
-V)
    [ -r "$conf" ] || { echo "glexec: -V is for root only" >&2; exit 203; }
    { echo "GLEXEC_CONFIG_FILE=\"$conf\""; echo "GLEXEC_LIBRARY=\"$library\""; } >&2
    exit 0
    ;;
esac

# sudo closes everything from $limit up. Descriptors of the shell's own must have one digit (dash)
# and must not be the control socket's.
word=9 keep=8 limit=10
control=${GLEXEC_CONTROL_FD:--}
case $control in
- | [3-7]) ;;
[89]) word=7 keep=6 ;;
[1-9][0-9] | [1-9][0-9][0-9]) limit=$((control + 1)) ;;
*)
    echo "glexec: GLEXEC_CONTROL_FD is not the number of a descriptor from 3 to 999" >&2
    exit 201
    ;;
esac
if [ ! -x '@SUDO@' ] || [ ! -x '@PYTHON@' ] || [ ! -r '@WORD@' ]; then
    echo "glexec: @SUDO@, @PYTHON@ or @WORD@ is missing" >&2
    exit 202
fi

# A background job gets /dev/null as its standard input unless it is redirected.
if [ -e /proc/self/fd/0 ]; then
    eval "exec $word<'@WORD@' $keep<&0"
else
    eval "exec $word<'@WORD@' $keep</dev/null"
fi
'@SUDO@' -n -C "$limit" '@ROOT@' "$$" "$word" "$control" "$@" <&"$keep" &
exec '@PYTHON@' -IS -c "import sys; sys.path.insert(0, '$library'); from glexec.front import main; main()" "$!" "$word"
