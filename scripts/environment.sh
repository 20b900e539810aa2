# Sourced by the other scripts: `prepare [EXTRA]` makes a virtual environment with graphopt in it, once.
#
#   GRAPHOPT_VENV   where the environment lies; .venv in the repository unless told
#   PYTHON          the interpreter it is made with; python3 unless told
#
# A stamp in the environment holds a checksum of pyproject.toml and of this checkout's place, so that a second call does
# nothing until either changes. On success VENV is the environment's folder.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${GRAPHOPT_VENV:-$ROOT/.venv}"

say() { printf '%s\n' "graphopt: $*" >&2; }

run() {
    printf '  $' >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
    "$@"
}

# The interpreter to make the environment with: 3.10 or newer.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "found no Python 3.10 or newer (tried: ${PYTHON:-python3 and python3.10 to python3.13}); set PYTHON"
    return 1
}

# Debian splits ensurepip off: without it, an installed pip fills the environment, else the package is installed.
make_venv() {
    local python="$1"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        run "$python" -m venv "$VENV"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        run "$python" -m venv --without-pip "$VENV"
        run "$python" -m pip --python "$VENV/bin/python" install --quiet pip
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        run apt-get update -qq
        run apt-get install -y -qq python3-venv
        run "$python" -m venv "$VENV"
    else
        say "$python has neither ensurepip nor pip; on Debian: sudo apt-get install python3-venv"
        return 1
    fi
}

# prepare EXTRA: an environment with graphopt[EXTRA], or graphopt alone where EXTRA is empty.
prepare() {
    local extra="${1:-}" python sum stamp
    sum="$( (cat "$ROOT/pyproject.toml" && printf '%s' "$ROOT") | sha256sum | cut -d' ' -f1)"
    stamp="$VENV/graphopt${extra:+-$extra}.stamp"
    if [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ]; then
        return
    fi
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)"
        say "making a virtual environment in $VENV"
        make_venv "$python"
    fi
    say "installing graphopt and what it needs into $VENV (the first time takes minutes)"
    run "$VENV/bin/python" -m pip install --quiet --editable "$ROOT${extra:+[$extra]}"
    # What an environment holds beside its extra, so that the demonstration does not install again after the tests.
    printf '%s\n' "$sum" | tee "$stamp" >"$VENV/graphopt.stamp"
    [ "$extra" != dev ] || cp "$stamp" "$VENV/graphopt-tvm.stamp" # dev holds tvm
}
