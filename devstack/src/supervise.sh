# Runs a command that must not outlive the parent of this shell.
#   sh -c supervise.sh sh LOG GRACE COMMAND [ARG ...]
# The command's output is appended to LOG; this shell prints only the command's process id. When the
# shell's standard input ends, because the parent closed it or has died, the command gets SIGTERM, and
# SIGKILL after GRACE tenths of a second. The shell exits with the command's status.
log=$1
grace=$2
shift 2
exec 3<&0
"$@" </dev/null >>"$log" 2>&1 3<&- &
child=$!
echo "$child"
(
    read -r _ <&3
    kill -TERM "$child"
    while [ "$grace" -gt 0 ] && kill -0 "$child"; do
        sleep 0.1
        grace=$((grace - 1))
    done
    kill -KILL "$child"
) >/dev/null 2>&1 &
watcher=$!
exec 3<&- >/dev/null
wait "$child"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
