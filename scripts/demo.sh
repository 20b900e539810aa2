#!/usr/bin/env bash
# Sets graphopt up where it is not yet, and runs `graphopt demo` with the arguments given.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare tvm
cd "$ROOT"
run "$VENV/bin/graphopt" demo "$@"
