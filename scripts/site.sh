#!/usr/bin/env bash
# Sets graphopt and mkdocs up where they are not yet, and builds the documentation site in build/site/html. Fails on a link
# that leads nowhere, and on a name of the interface that does not exist; code blocks are run by the tests.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare docs
cd "$ROOT"
run "$VENV/bin/python" scripts/site_source.py
# Not --quiet: what is not shown does not count as a warning, and nothing would ever fail.
NO_MKDOCS_2_WARNING=1 run "$VENV/bin/python" -m mkdocs build --strict "$@"
say "the site is in build/site/html"
