#!/bin/sh
# keep_ptxas_log.sh OBJECT COMMAND...: runs the compiler and keeps what it says on stderr in OBJECT.ptxas; shows it on failure.
log="$1.ptxas"
shift
"$@" 2>"$log" && exit 0
status=$?
cat "$log" >&2
rm -f "$log"
exit "$status"
