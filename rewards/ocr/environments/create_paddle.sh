#!/usr/bin/env bash
# Creates the environment in which the OCR reward runs PaddleOCR, apart from the trainer's:
#
#     rewards/ocr/environments/create_paddle.sh [FOLDER]        default: .venv-paddle
#
# PYTHON names the interpreter (3.11 or 3.12; default python3.11, python3.12 or python3, the first that fits).
# paddle.txt names every version, so nothing is resolved here. It is made of paddle.in by
#     uv pip compile paddle.in --python-version 3.11 --universal --no-annotate -o paddle.txt
# Running it again mends an environment that was left half made.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../../.." && pwd)
FOLDER=${1:-.venv-paddle}

say() { printf '%s\n' "$*" >&2; }
fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; }

if [ ! -f "$REPOSITORY/pyproject.toml" ]; then
    say "error: $REPOSITORY has no pyproject.toml; run this command from a checkout of blip3o-rl"
    exit 1
fi
if ! fits "$FOLDER/bin/python"; then
    python=
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if fits "$candidate"; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        say "error: none of '${PYTHON:-python3.11 python3.12 python3}' is a Python 3.11 or 3.12 with venv; install one, or name it: PYTHON=/path/to/python3.11"
        exit 1
    fi
    say "creating $FOLDER with $("$python" --version)"
    "$python" -m venv --clear "$FOLDER"
fi

python=$FOLDER/bin/python
say "installing the pinned packages of paddle.txt (1.7 GB in the end) and this package"
if "$python" -m pip install --quiet uv && "$python" -m uv pip install --quiet --python "$python" --no-deps -r "$HERE/paddle.txt"; then
    say "installed with uv"
else
    say "uv cannot reach the packages here; pip does the same more slowly"
    "$python" -m pip install --quiet --no-deps -r "$HERE/paddle.txt"
fi
"$python" -m pip install --quiet --no-deps --no-build-isolation -e "$REPOSITORY"
"$python" -W ignore -c 'import onnxruntime, paddle, paddleocr; from blip3o_rl.rewards.ocr.reward import OCRReward' >/dev/null
say "done: $FOLDER has paddleocr $("$python" -c 'from importlib.metadata import version as v; print(v("paddleocr"), "paddlepaddle", v("paddlepaddle"), "onnxruntime", v("onnxruntime"))')"
