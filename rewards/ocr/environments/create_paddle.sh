#!/usr/bin/env bash
# Creates the environment in which the OCR reward runs PaddleOCR, apart from the trainer's:
#
#     rewards/ocr/environments/create_paddle.sh [FOLDER]        default: .venv-paddle
#
# PYTHON names the interpreter (3.11 or 3.12; default python3.11, python3.12 or python3, the first that fits).
# paddle.txt names every version, so nothing is resolved here. It is made of paddle.in by
#     uv pip compile paddle.in --python-version 3.11 --universal --no-annotate -o paddle.txt
# Run it again to complete an environment that was interrupted.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../../.." && pwd)
FOLDER=${1:-.venv-paddle}

. "$HERE/../../environment.sh"
open_environment "$FOLDER"
python=$FOLDER/bin/python
say "installing the pinned packages of paddle.txt (1.7 GB in the end) and this package"
install_pinned "$python" "$HERE/paddle.txt"
"$python" -W ignore -c 'import onnxruntime, paddle, paddleocr; from blip3o_rl.rewards.ocr.reward import OCRReward' >/dev/null
say "done: $FOLDER has paddleocr $("$python" -c 'from importlib.metadata import version as v; print(v("paddleocr"), "paddlepaddle", v("paddlepaddle"), "onnxruntime", v("onnxruntime"))')"
