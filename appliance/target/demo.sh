#!/bin/sh
# demo.sh BIN_DIR: serves a 1 GiB disk from ./state, over NVMe/TCP, until Ctrl-C (`make run`).
#
# The disk is a thin volume of a pool in a file. Everything is kept in ./state: run it again and the
# disk, with what was written to it, is back. A disk that an older version left there, a file without
# a pool, is served as it is.
# ADIT_STATE_DIR and ADIT_LISTEN (tcp://ADDRESS:PORT) name another folder and another address.
set -eu

bin_dir=${1:?usage: demo.sh BIN_DIR}
state_dir=${ADIT_STATE_DIR:-./state}
listen=${ADIT_LISTEN:-tcp://127.0.0.1:4420}
nqn=nqn.2026-11.io.adit:demo
server=unix:$state_dir/aditd.sock
# Without hugepages the first lines of aditd's log say so, and it goes on.

ctl() { "$bin_dir/aditctl" --server "$server" "$@"; }

mkdir -p "$state_dir"
# In a session of its own, so that Ctrl-C reaches this script alone, which then ends it in order.
setpriv --pdeathsig TERM -- setsid "$bin_dir/aditd" --state-dir "$state_dir" --grpc "$server" &
aditd=$!
stopping=
stop() {
    [ -z "$stopping" ] || return 0
    stopping=yes
    echo "demo: stopping"
    kill -TERM "$aditd" 2>/dev/null || true
}
trap stop INT TERM HUP

tries=0
until ctl subsystem list >/dev/null 2>&1; do
    kill -0 "$aditd" 2>/dev/null || { wait "$aditd" || exit $?; exit 1; }
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ]; then
        echo "demo: aditd does not answer at $server" >&2
        stop
        break
    fi
    sleep 0.1
done

# A pool that was made in the moment in which the last run was killed is on its device and not attached.
pool() {
    refused=$(ctl pool create demo demo_file 2>&1) ||
        ctl pool import demo_file --name demo 2>/dev/null ||
        { echo "$refused" >&2; return 1; }
}

# The file is sparse: it grows with what is written, and has room for snapshots.
make_volume() {
    ctl bdev create file demo_file "$(readlink -f "$state_dir")/pool.img" --size 4GiB &&
        pool &&
        { ctl volume show demo/disk 2>/dev/null || ctl volume create demo/disk --size 1GiB; }
}

# Each call is idempotent: on the second run they find what the first one made.
serve() {
    if ctl bdev show demo >/dev/null 2>&1; then
        disk=demo
    else
        disk=demo/disk
        make_volume || return
    fi
    ctl subsystem create "$nqn" --allow-any-host &&
        ctl namespace add "$nqn" "$disk" --nsid 1 &&
        ctl listener add "$nqn" "$listen"
}
if [ -z "$stopping" ] && ! serve >/dev/null; then
    echo "demo: the disk could not be set up, see above" >&2
    stop
    failed=yes
fi
if [ -z "$stopping" ]; then
    address=${listen#tcp://}
    cat <<END

A disk of 1 GiB is served at $listen; it lives in $state_dir.

Use it (as root, on any Linux that reaches this address):
    modprobe nvme-tcp
    nvme connect --transport tcp --traddr ${address%:*} --trsvcid ${address##*:} --nqn $nqn
    nvme list
    nvme disconnect --nqn $nqn

Without a kernel initiator:
    $bin_dir/aditctl perf $listen/$nqn --workload randread --io-size 4KiB --queue-depth 32 --time 10s

Look at it and change it:
    $bin_dir/aditctl --server $server subsystem list
    $bin_dir/aditctl --server $server check $nqn
    $bin_dir/aditctl --server $server top

END
    [ "$disk" = demo ] || cat <<END
It is a thin volume; take a snapshot of it, and make a second disk of that:
    $bin_dir/aditctl --server $server snapshot create demo/disk@first
    $bin_dir/aditctl --server $server volume clone demo/disk@first demo/second
    $bin_dir/aditctl --server $server volume share demo/second --listen $listen

END
    echo 'Ctrl-C stops it; `make run` brings it back with its data.'
fi

# A signal interrupts wait; aditd's own status comes with the next one.
while :; do
    status=0
    wait "$aditd" || status=$?
    [ "$status" -gt 128 ] && kill -0 "$aditd" 2>/dev/null || break
done
[ -z "${failed:-}" ] || exit 1
exit "$status"
