#!/usr/bin/env bash
# Bring a results folder and a bucket together: copies what is new or changed, deletes nothing.
#
#   scripts/sync_gcloud.sh gs://BUCKET/PREFIX results      # from the bucket
#   scripts/sync_gcloud.sh results gs://BUCKET/PREFIX      # into it
#
# Either side may be one experiment or run of it: gs://BUCKET/PREFIX/demo results/demo.
# Temporary files and locks stay where they are.
#
#   --project P  default: gcloud's own
#   --dry-run    print the command and run nothing
set -euo pipefail
# shellcheck source=scripts/gcloud_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud_common.sh"

paths=()
while (($#)); do
    if [[ $1 == --?*=* ]]; then set -- "${1%%=*}" "${1#*=}" "${@:2}"; fi
    case $1 in
        -*) common_flag "$@" && shift "$WORDS" ;;
        *) paths+=("$1") && shift ;;
    esac
done
((${#paths[@]} == 2)) || die "${#paths[@]} places given; give where from and where to, see --help"
[[ -z $ZONE ]] || die "--zone $ZONE: buckets have no zone; leave it out"
source=${paths[0]}
target=${paths[1]}
case $source,$target in
    gs://*,gs://*) die "both places are buckets; one must be a local folder" ;;
    gs://*,*) [[ -n $DRY_RUN ]] || mkdir -p "$target" ;;
    *,gs://*) [[ -d $source ]] || die "$source is no folder; give the one that holds the results" ;;
    *) die "neither place is a bucket; give one as gs://BUCKET/PREFIX" ;;
esac
require_gcloud

flags=(--recursive --exclude='.*\.(tmp|lock)$')
[[ -z $PROJECT ]] || flags+=(--project="$PROJECT")
run gcloud storage rsync "${flags[@]}" "$source" "$target"
