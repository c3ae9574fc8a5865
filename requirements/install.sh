#!/usr/bin/env bash
# Creates an environment with a pinned stack (STACK=cpu, cpu-pin or gpu) and this package, editable. `make install` and
# `make install-gpu` call it only when they have to.
#
# The lock ($STACK.txt) names every version, so nothing is resolved here: pip alone would need more than ten minutes to
# resolve these stacks. The locks of CPUs leave torch out: uv takes PyTorch's own CPU build where its index can be
# reached, else pip takes what its configuration finds. Which build came is said at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
STACK=${STACK:-cpu}
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
        say "error: '$*' failed; its output is in $LOG. Fix the cause and run make again"
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
"$python" -m pip install uv >>"$LOG" 2>&1 || say "uv cannot be installed here; pip does its work more slowly"
uv() { "$python" -m uv "$@" --python "$python" >>"$LOG" 2>&1; }

if [ "$STACK" != gpu ] && ! "$python" -c "from importlib.metadata import version; assert version('torch').split('+')[0] == '${TORCH##*==}'" 2>/dev/null; then
    say "installing $TORCH"
    UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=0 uv pip install --compile-bytecode --torch-backend cpu "$TORCH" || logged "$python" -m pip install "$TORCH"
fi
say "installing the pinned packages of requirements/$STACK.txt"
if uv pip install --compile-bytecode --no-deps -r "requirements/$STACK.txt"; then
    say "installed with uv"
else
    say "uv cannot reach the packages here; pip does the same more slowly"
    logged "$python" -m pip install --no-deps -r "requirements/$STACK.txt"
fi
if [ "$STACK" != gpu ]; then
    logged "$python" -m pip uninstall -y torchvision torchaudio torchcodec
fi
logged "$python" -m pip install --no-deps --no-build-isolation -e .
say "torch: $("$python" -c "import torch; print(torch.__version__, 'for', 'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPUs')")"
