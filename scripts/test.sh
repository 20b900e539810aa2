#!/usr/bin/env bash
# Sets graphopt and its development tools up where they are not yet, and runs pytest with the arguments given.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare dev
cd "$ROOT"
run "$VENV/bin/python" -m pytest "$@"
