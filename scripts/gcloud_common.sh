# What the scripts that call gcloud share; they source it.
# shellcheck shell=bash

PROGRAM=${0##*/}
ZONE=
PROJECT=
DRY_RUN=

# die MESSAGE [CODE]: end with one line; code 2, the user's mistake, unless given.
die() {
    printf '%s: error: %s\n' "$PROGRAM" "$1" >&2
    exit "${2:-2}"
}

say() {
    printf '%s: %s\n' "$PROGRAM" "$1" >&2
}

# usage: the comment at the head of the script that runs.
usage() {
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
    exit 0
}

# need_value FLAG [VALUE…]: refuse a flag at the end of the line.
need_value() {
    (($# > 1)) || die "$1 is missing its value; see --help"
}

# common_flag ARGUMENTS…: read one of the flags that all scripts have; $WORDS is its length.
# shellcheck disable=SC2034 # read by the scripts
common_flag() {
    WORDS=2
    case $1 in
        --zone) need_value "$@" && ZONE=$2 ;;
        --project) need_value "$@" && PROJECT=$2 ;;
        --dry-run) DRY_RUN=1 WORDS=1 ;;
        --help | -h) usage ;;
        *) die "unknown argument '$1'; see --help" ;;
    esac
}

# place: set $PLACE, the flags that say where; --zone must have been given.
place() {
    [[ -n $ZONE ]] || die "--zone is missing; give the zone of the TPUs, as in --zone us-east5-b"
    PLACE=(--zone="$ZONE")
    [[ -z $PROJECT ]] || PLACE+=(--project="$PROJECT")
}

require() {
    [[ -n $DRY_RUN ]] || command -v "$1" > /dev/null || die "$1 is not installed; $2"
}

require_gcloud() {
    require gcloud "see https://cloud.google.com/sdk/docs/install"
}

# quoted WORDS…: one line that any POSIX shell reads as these words.
quoted() {
    local word line=
    for word in "$@"; do
        if [[ -z $word || $word == *[!A-Za-z0-9_./:=@%+,-]* ]]; then
            word="'${word//\'/\'\\\'\'}'"
        fi
        line+="${line:+ }$word"
    done
    printf '%s\n' "$line"
}

# run COMMAND…: run it, or with --dry-run print it.
run() {
    if [[ -n $DRY_RUN ]]; then
        quoted "$@"
    else
        "$@"
    fi
}
