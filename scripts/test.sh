#!/usr/bin/env bash
# Sets graphopt and its development tools up where they are not yet, and runs pytest with the arguments given.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare dev
cd "$ROOT"
# Everything at once goes faster in a process per core; a selection is quicker in this one.
[ $# -gt 0 ] || set -- --numprocesses=auto
run "$VENV/bin/python" -m pytest "$@"
