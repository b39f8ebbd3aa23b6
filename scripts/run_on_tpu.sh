#!/usr/bin/env bash
# Run one command on every host of a TPU VM and stream its log.
#
#   scripts/run_on_tpu.sh NAME --zone Z [--project P] [--no-sync] [--dry-run] [--] COMMAND…
#
# Copies this working tree (the files that git does not ignore) to ~/learning-mechanics on
# every host, installs requirements.txt and libtpu there if they changed, and runs COMMAND in
# that folder, with that environment's python, on all hosts at once. The exit code is the
# command's; if it differs between hosts, that of the first host on which it failed.
# Ctrl-C and SIGTERM are passed on to the command, which may take its time to end.
#
#   --no-sync    run what is there already
#   --project P  default: gcloud's own
#   --dry-run    print the commands and run nothing
#
# Slices of several hosts need the key in the agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/gcloud_common.sh
source "$root/scripts/gcloud_common.sh"

folder=learning-mechanics
name=
sync=1
while (($#)); do
    if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
    case $1 in
        --) shift && break ;;
        --no-sync) sync= && shift ;;
        -*) common_flag "$@" && shift "$WORDS" ;;
        *)
            [[ -z $name ]] || break # the command
            name=$1 && shift
            ;;
    esac
done
[[ -n $name ]] || die "the TPU VM's name is missing; see --help"
(($#)) || die "the command is missing; give one, as in $PROGRAM $name --zone Z -- python train.py"
place
require_gcloud

# on_hosts COMMAND: run a line of shell on every host. A host that is preempted stops
# answering; the flags have ssh notice that within two minutes.
on_hosts() {
    run gcloud compute tpus tpu-vm ssh "$name" "${PLACE[@]}" --worker=all \
        --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4 --command="$1"
}

# Pack the files that are neither ignored nor deleted.
pack() {
    local file
    git -C "$root" ls-files -z --cached --others --exclude-standard \
        | while IFS= read -r -d '' file; do
            if [[ -e $root/$file || -L $root/$file ]]; then printf '%s\0' "$file"; fi
        done > "$scratch/files"
    tar -czf "$scratch/tree.tgz" -C "$root" --null -T "$scratch/files"
}

# Files that are gone from the working tree go on the hosts, too: those of the last archive.
# shellcheck disable=SC2016 # the hosts expand these
unpack='if [ -f .tree.tgz ]; then
    tar --quoting-style=literal -tzf .tree.tgz | xargs -d "\n" rm -f
fi &&
mv ../tree.tgz .tree.tgz && tar -xzf .tree.tgz'

if [[ -n $sync ]]; then
    require git "or use --no-sync"
    scratch=${TMPDIR:-/tmp}/run_on_tpu.$$
    if [[ -z $DRY_RUN ]]; then
        git -C "$root" rev-parse --git-dir > /dev/null 2>&1 \
            || die "$root is no git checkout, which the list of files comes from; use --no-sync"
        mkdir -m 700 "$scratch"
        trap 'rm -rf "$scratch"' EXIT
        pack
    else
        printf '# %s is an archive of the files that git does not ignore\n' "$scratch/tree.tgz"
    fi
    run gcloud compute tpus tpu-vm scp "$scratch/tree.tgz" "$name:tree.tgz" "${PLACE[@]}" \
        --worker=all
    on_hosts "mkdir -p $folder && cd $folder &&
$unpack &&
bash scripts/setup_tpu_host.sh"
fi

pidfile=/tmp/run_on_tpu.$$.pid
# shellcheck disable=SC2016 # the hosts expand these
remote="cd $folder && echo "'$$'" > $pidfile &&
export PJRT_DEVICE=TPU "'PATH="$PWD/.venv/bin:$PATH"'" &&
exec $(quoted "$@")"
if [[ -n $DRY_RUN ]]; then
    on_hosts "$remote"
    exit
fi

caught=
trap 'caught=INT' INT
trap 'caught=TERM' TERM
# A job of its own does not get the terminal's Ctrl-C: the stream stays open until the command
# has ended in its own way. Its input is empty, for a job cannot read from the terminal.
set -m
on_hosts "$remote" < /dev/null &
job=$!
set +m
while :; do
    if [[ -n $caught ]]; then
        signal=$caught caught=
        say "passing SIG$signal on to the command"
        on_hosts "kill -$signal \$(cat $pidfile)" < /dev/null || say "that did not reach all hosts"
    fi
    code=0
    wait "$job" || code=$?
    [[ -n $caught ]] || exit "$code"
done
