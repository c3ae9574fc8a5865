#!/usr/bin/env bash
# Creates .venv with the pinned CPU stack and this package (editable). `make install` calls it only when it has to.
#
# The lock (cpu.txt) names every version, so nothing is resolved here: pip alone would need more than ten minutes to
# resolve this stack. torch comes first and by pip, because pip's configuration is where a CPU build is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
TORCH=${TORCH:-torch==2.13.0}
LOG=$VENV/install.log

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    say "error: none of '${PYTHON:-python3.11 python3.12 python3}' is a Python 3.11 or 3.12 with venv; install one, or name it: make PYTHON=/path/to/python3.11"
    return 1
}

# Runs a command with its output in the log; the log's end is shown when the command fails.
logged() {
    if ! "$@" >>"$LOG" 2>&1; then
        tail -n 20 "$LOG" >&2
        say "error: '$*' failed; its output is in $LOG. Mend the cause and run make again"
        return 1
    fi
}

if ! "$VENV/bin/python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
    python=$(find_python)
    say "creating $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
fi
: >"$LOG"
python=$VENV/bin/python
if ! "$python" -c "from importlib.metadata import version; assert version('torch').split('+')[0] == '${TORCH##*==}'" 2>/dev/null; then
    say "installing $TORCH"
    logged "$python" -m pip install "$TORCH"
fi
say "installing the pinned packages of requirements/cpu.txt"
if "$python" -m pip install uv >>"$LOG" 2>&1 &&
    "$python" -m uv pip install --python "$python" --no-deps -r requirements/cpu.txt >>"$LOG" 2>&1; then
    say "installed with uv"
else
    say "uv cannot reach the packages here; pip does the same more slowly"
    logged "$python" -m pip install --no-deps -r requirements/cpu.txt
fi
logged "$python" -m pip uninstall -y torchvision torchaudio torchcodec
logged "$python" -m pip install --no-deps --no-build-isolation -e .
