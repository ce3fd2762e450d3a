#!/bin/sh
# Instructions that the target takes for a request, over RDMA on the double of verbs and over TCP on loopback: callgrind counts them, so that
# a busy machine gives the same figures. Counted are the target's polls (counted_poll in both benches). Not counted: the host's side; the double,
# which stands for the adapter and its library; a RAM disk's copy into a buffer; and the kernel, which does most of the work of TCP
# (`MEASURE=cpu cargo bench -p nvmf_tcp` has it).
#
# instructions.sh [DIR]    DIR keeps callgrind's files, for callgrind_annotate.
set -eu
cd "$(dirname "$0")/../../.."
mkdir -p "${1:-/tmp}"
dir=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -r "$dir"' EXIT

bench() { # package bench: its program
    cargo bench --no-run -p "$1" --bench "$2" 2>&1 | sed -n 's/.*Executable .*(\(.*\))$/\1/p'
}
rdma=$(bench nvmf_rdma double)
tcp=$(bench nvmf_tcp loopback)

# Long copies are done in loops of vector instructions: callgrind takes each byte that `rep movsb` copies for an instruction.
GLIBC_TUNABLES=glibc.cpu.x86_rep_stosb_threshold=1073741824:glibc.cpu.x86_rep_movsb_threshold=1073741824
export GLIBC_TUNABLES

# All that the polls take, less what is in calls of the double, and in the copy of a RAM disk: it is one instruction, which callgrind takes for as many
# as there are bytes.
own='
/^c?fn=/ {
    is_callee = sub(/^c/, "")
    id = substr($1, 4)
    if (NF > 1) names[id] = $0
    if (is_callee) callee = id; else caller = id
}
/^calls=/ {
    getline
    if (names[callee] ~ /verbs_emu|Region::read_at$/ && names[caller] !~ /verbs_emu/) others += $2
}
/^totals:/ { total = $2 }
END { printf "%.0f", (total - others) / ios }'

count() { # program label: instructions for an I/O
    out="$dir/$(basename "$1" | cut -d- -f1) $2"
    ios=$(MEASURE=instructions valgrind -q --tool=callgrind --callgrind-out-file="$out" \
        --collect-atstart=no --toggle-collect='*::counted_poll' "$1" "$2" 2>"$dir/log" |
        sed -n "s/^$2: \([0-9]*\) I\/Os$/\1/p")
    awk -v ios="$ios" "$own" "$out"
}

printf '%-36s %6s %6s %6s\n' 'instructions of a request' RDMA TCP ratio
for device in null ram; do
    for depth in 1 32; do
        for way in read 'write in capsule' 'write by key'; do
            what="4 KiB qd $depth $device"
            over_rdma=$(count "$rdma" "$way $what")
            over_tcp=
            case $way in
            'write by key') ;;
            *) over_tcp=$(count "$tcp" "${way% in capsule} $what") ;;
            esac
            printf '%-36s %6s %6s %6s\n' "$way $what" "$over_rdma" "${over_tcp:--}" \
                "$(awk -v a="$over_rdma" -v b="$over_tcp" 'BEGIN { if (b) printf "%.2f", a / b; else print "-" }')"
        done
    done
done
