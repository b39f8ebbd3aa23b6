#!/usr/bin/env bash
# Delete all TPU VMs and queued resources whose names begin with a prefix, after asking.
#
#   scripts/kill_all.sh --prefix P --zone Z [--project P] [--yes] [--dry-run]
#
# What is on their disks is lost; results in buckets stay.
#
#   --yes      do not ask
#   --dry-run  print the commands, NAME standing for each name found, and run nothing
set -euo pipefail
# shellcheck source=scripts/gcloud_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud_common.sh"

prefix=
yes=
while (($#)); do
    if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
    case $1 in
        --prefix) need_value "$@" && prefix=$2 && shift 2 ;;
        --yes | -y) yes=1 && shift ;;
        *) common_flag "$@" && shift "$WORDS" ;;
    esac
done
[[ -n $prefix ]] || die "--prefix is missing; give what the names begin with, as in --prefix lm"
place
require_gcloud

# list KIND FIELD: "NAME<tab>STATE" of those that begin with the prefix.
list() {
    local all line
    all=$(run gcloud compute tpus "$1" list "${PLACE[@]}" --format="value(name.basename(),$2)") \
        || return
    while IFS= read -r line; do
        if [[ -n $DRY_RUN || $line == "$prefix"* ]]; then printf '%s\n' "$line"; fi
    done <<< "$all"
}

delete() {
    run gcloud compute tpus "$@" "${PLACE[@]}" --quiet < /dev/null
}

if [[ -n $DRY_RUN ]]; then
    list queued-resources state.state
    list tpu-vm state
    delete queued-resources delete NAME --force
    delete tpu-vm delete NAME
    exit
fi

queued=$(list queued-resources state.state) || die "the queued resources cannot be listed" 1
nodes=$(list tpu-vm state) || die "the TPU VMs cannot be listed" 1
if [[ -z $queued$nodes ]]; then
    say "nothing in $ZONE begins with '$prefix'"
    exit 0
fi
# each LIST COMMAND…: run it for every line of a list, with name and state.
each() {
    local list=$1 name state
    while IFS=$'\t' read -r name state; do
        [[ -z $name ]] || "${@:2}" "$name" "$state"
    done <<< "$list"
}

each "$queued" printf 'queued resource  %s  %s\n'
each "$nodes" printf 'TPU VM           %s  %s\n'
if [[ -z $yes ]]; then
    answer=
    read -r -p "delete all of these? [y/N] " answer || true
    if [[ $answer != [yY]* ]]; then
        say "nothing was deleted"
        exit 1
    fi
fi

failed=()
delete_queued() {
    delete queued-resources delete "$1" --force || failed+=("$1")
}
delete_left() {
    if grep -qxF -- "$1" <<< "$left"; then delete tpu-vm delete "$1" || failed+=("$1"); fi
}

each "$queued" delete_queued
# --force has deleted the nodes of queued resources; the others are left, among those shown.
left=$(list tpu-vm state | cut -f1) || die "the TPU VMs cannot be listed" 1
each "$nodes" delete_left
((${#failed[@]} == 0)) || die "not deleted: ${failed[*]}; run this again" 1
say "deleted"
