#!/usr/bin/env bash
# Two hosts on one machine: network namespaces with a cable between them, and mpirun's remote agent that enters them.
# Needs root and iproute2. The ranks of the two hosts can reach each other by the cable alone.
#
#   two_hosts.sh up                 makes host1 (10.77.0.1) and host2 (10.77.0.2)
#   two_hosts.sh run -np 2 ARGS…    mpirun on host1, a rank on each host: ARGS are a program and what it takes
#   two_hosts.sh cut | mend         pulls the cable, plugs it in again
#   two_hosts.sh bytes              bytes that the cable has carried to host1
#   two_hosts.sh down               removes both, and what still runs in them
set -eu
self=$(realpath "$0")
case ${1:-} in
up) for n in 1 2; do ip netns add host$n; done
    ip link add cable1 type veth peer name cable2
    for n in 1 2; do
        ip link set cable$n netns host$n; ip -n host$n addr add 10.77.0.$n/24 dev cable$n
        ip -n host$n link set lo up; ip -n host$n link set cable$n up
    done ;;
run) shift; root=; [ "$(id -u)" != 0 ] || root=--allow-run-as-root
    # shellcheck disable=SC2086
    exec ip netns exec host1 env PATH="$PATH" HOME="$HOME" mpirun $root -H 10.77.0.1:1,10.77.0.2:1 \
        --mca plm_rsh_agent "$self" --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 \
        -bind-to none -map-by slot -x PATH -x HOME -x PYTHONPATH=src -mca pml ob1 -mca btl ^openib "$@" ;;
cut) ip -n host1 link set cable1 down ;;
mend) ip -n host1 link set cable1 up ;;
bytes) ip netns exec host1 cat /sys/class/net/cable1/statistics/rx_bytes ;;
down) for n in 1 2; do
        ip netns pids host$n 2> /dev/null | xargs --no-run-if-empty kill -KILL 2> /dev/null || true
        ip netns del host$n 2> /dev/null || true
        ip link del cable$n 2> /dev/null || true
    done ;;
10.77.0.*) host=host${1##*.}; shift; exec ip netns exec "$host" sh -c "$*" ;;  # as mpirun's agent: HOST COMMAND
*) sed -n '2,10p' "$self" >&2; exit 2 ;;
esac
