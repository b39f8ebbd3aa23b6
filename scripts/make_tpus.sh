#!/usr/bin/env bash
# Create TPU VMs, wait until they run, then install the project on every host and check it.
#
#   scripts/make_tpus.sh --zone Z --type T [--count N] [--prefix P] [--spot] [--queued] …
#
# The nodes are PREFIX-0, PREFIX-1, …; those that exist already are only waited for, so run it
# again after a time-out. It ends with the doctor on every host of every node.
#
#   --type T             accelerator type: v6e-8, v5litepod-8, v5p-8, v4-8, …
#   --count N            how many nodes (1)
#   --prefix P           of their names (lm)
#   --spot               cheap, and taken away at any time
#   --queued             as queued resources, which wait for capacity instead of failing
#   --runtime-version V  the image; by default the one for --type
#   --timeout SECONDS    for all nodes together to be ready (3600)
#   --poll SECONDS       between looks at their states (20)
#   --no-install         leave the hosts as they are made
#   --project P          default: gcloud's own
#   --dry-run            print the commands and run nothing
#   -- FLAG…             more flags for gcloud's create: --network=…, --service-account=…
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/gcloud_common.sh
source "$scripts/gcloud_common.sh"

accelerator=
count=1
prefix=lm
kind=tpu-vm
runtime=
timeout=3600
poll=20
install=1
extra=()
spot=
while (($#)); do
    if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
    case $1 in
        --)
            extra=("${@:2}")
            break
            ;;
        --type) need_value "$@" && accelerator=$2 && shift 2 ;;
        --count) need_value "$@" && count=$2 && shift 2 ;;
        --prefix) need_value "$@" && prefix=$2 && shift 2 ;;
        --runtime-version) need_value "$@" && runtime=$2 && shift 2 ;;
        --timeout) need_value "$@" && timeout=$2 && shift 2 ;;
        --poll) need_value "$@" && poll=$2 && shift 2 ;;
        --spot) spot=1 && shift ;;
        --queued) kind=queued-resources && shift ;;
        --no-install) install= && shift ;;
        *) common_flag "$@" && shift "$WORDS" ;;
    esac
done
[[ -n $accelerator ]] || die "--type is missing; give an accelerator type, as in --type v6e-8"
[[ $count =~ ^[1-9][0-9]*$ ]] || die "--count $count: give a number of nodes, 1 or more"
[[ $timeout =~ ^[0-9]+$ ]] || die "--timeout $timeout: give a whole number of seconds"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--poll $poll: give a number of seconds"
if [[ -z $runtime ]]; then
    case $accelerator in
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v[234]-*) runtime=tpu-ubuntu2204-base ;;
        *) die "--type $accelerator: no image is known for it; name one with --runtime-version" ;;
    esac
fi
place
require_gcloud

[[ -z $spot ]] || extra=(--spot ${extra[@]+"${extra[@]}"})
names=()
for ((i = 0; i < count; i++)); do names+=("$prefix-$i"); done

create() {
    local version=(--version="$runtime")
    [[ $kind == tpu-vm ]] || version=(--node-id="$1" --runtime-version="$runtime")
    run gcloud compute tpus "$kind" create "$1" "${PLACE[@]}" \
        --accelerator-type="$accelerator" "${version[@]}" ${extra[@]+"${extra[@]}"}
}

# show NAME FORMAT: a field of the node, or of the queued resource; fails if there is none.
show() {
    gcloud compute tpus "$kind" describe "$1" "${PLACE[@]}" --format="value($2)" 2> /dev/null
}

state_of() {
    if [[ $kind == tpu-vm ]]; then show "$1" state; else show "$1" state.state; fi
}

install_on() {
    local flags=("${PLACE[@]}")
    [[ -z $DRY_RUN ]] || flags+=(--dry-run)
    "$scripts/run_on_tpu.sh" "$1" "${flags[@]}" -- python -m scripts.doctor
}

failed=()
fail() {
    say "$1: $2"
    failed+=("$1")
}

# look INDEX: whether this node is settled, ready or failed. Its creation, where that still
# runs, says itself why it fails; until it ends there may be nothing to describe.
look() {
    local name=${names[$1]} job=${jobs[$1]} creating='' state reason
    if [[ -n $job ]] && kill -0 "$job" 2> /dev/null; then creating=1; fi
    state=$(state_of "$name") || state=
    if [[ -n $state && $state != "${last[$1]-}" ]]; then say "$name: $state"; fi
    last[$1]=$state
    case $state in
        READY | ACTIVE)
            ready+=("$name")
            return
            ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING | STOPPING | STOPPED | PREEMPTED | TERMINATED)
            reason=$(show "$name" state.failedData.error.message) || reason=
            fail "$name" "it will not run${reason:+: $reason}"
            return
            ;;
    esac
    [[ -z $creating ]] || return 1
    if [[ -n $job ]]; then
        if ! wait "$job"; then
            fail "$name" "it was not created, see above"
            return
        fi
        jobs[$1]=
    fi
    if [[ -n $state ]]; then
        misses[$1]=0
        return 1
    fi
    misses[$1]=$((${misses[$1]-0} + 1))
    ((${misses[$1]} >= 3)) || return 1 # the network may fail once
    fail "$name" "it is gone, or gcloud cannot see it any more"
}

if [[ -n $DRY_RUN ]]; then
    for name in "${names[@]}"; do create "$name"; done
    [[ -z $install ]] || for name in "${names[@]}"; do install_on "$name"; done
    exit
fi

jobs=()
for name in "${names[@]}"; do
    if state_of "$name" > /dev/null; then
        say "$name exists already"
        jobs+=("")
    else
        create "$name" &
        jobs+=($!)
    fi
done

ready=()
last=()
misses=()
pending=("${!names[@]}")
while :; do
    waiting=()
    for i in "${pending[@]}"; do look "$i" || waiting+=("$i"); done
    ((${#waiting[@]})) || break
    pending=("${waiting[@]}")
    if ((SECONDS >= timeout)); then
        for i in "${pending[@]}"; do
            [[ -z ${jobs[i]} ]] || kill "${jobs[i]}" 2> /dev/null || true
            fail "${names[i]}" "not ready after $timeout s; run this again to go on waiting"
        done
        break
    fi
    sleep "$poll"
done

if [[ -n $install ]]; then
    for name in ${ready[@]+"${ready[@]}"}; do
        install_on "$name" || fail "$name" "it runs, but installing or the doctor failed on it"
    done
fi
if ((${#failed[@]})); then
    say "failed: ${failed[*]}; scripts/kill_all.sh --prefix $prefix $(quoted "${PLACE[@]}") deletes them"
    exit 1
fi
say "ready: ${ready[*]}"
