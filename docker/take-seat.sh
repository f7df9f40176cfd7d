#!/bin/sh
# take-seat COMMAND...: gives a replica a name that outlives its container, then becomes COMMAND.
#
# A worker's name is its identity in a run: its share of the data and its unsent update hang on it.
# Replicas of one Compose service differ only by a host name that changes with every container, so
# the name comes from the volume they share: the first numbered file whose lock is free. The lock
# is held by the open file, which COMMAND inherits: the kernel frees it however the process ends.
# (flock works between containers of one host; on several hosts give each worker its name instead.)
set -eu

if [ -z "${FEDLORA_WORKER__NAME:-}" ]; then
  seats=${FEDLORA_SEATS:?names the folder of the seats}
  mkdir -p "$seats"
  seat=1
  while :; do
    exec 9>"$seats/$seat"
    flock --nonblock 9 && break
    seat=$((seat + 1))
  done
  export FEDLORA_WORKER__NAME="worker-$seat"
fi
exec "$@"
