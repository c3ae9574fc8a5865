#!/usr/bin/env bash
# Creates the environment in which the GenEval reward runs mmdet itself, apart from the trainer's:
#
#     rewards/geneval/environments/create_mmdet.sh [FOLDER]        default: .venv-mmdet
#
# PYTHON names the interpreter (3.11 or 3.12; default python3.11, python3.12 or python3, the first that fits), TORCH the
# requirement for torch (default torch==2.13.0; pip's configuration decides whether that is a CPU or a CUDA build).
# mmdet.txt names every other version, so nothing is resolved here and nothing is compiled. It is made of mmdet.in by
#     echo 'torch; python_version < "3"' > /tmp/no-torch.txt
#     uv pip compile mmdet.in --override /tmp/no-torch.txt --constraint ../../../requirements/cpu.txt \
#         --python-version 3.11 --universal --no-annotate -o mmdet.txt
# Run it again to complete an environment that was interrupted.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../../.." && pwd)
FOLDER=${1:-.venv-mmdet}
TORCH=${TORCH:-torch==2.13.0}

. "$HERE/../../environment.sh"
open_environment "$FOLDER"
python=$FOLDER/bin/python
say "installing $TORCH, the pinned packages of mmdet.txt (about 1.2 GB with a CPU torch) and this package"
"$python" -m pip install --quiet "$TORCH"
install_pinned "$python" "$HERE/mmdet.txt"
"$python" -c 'from blip3o_rl.rewards.geneval.mmdet_detector import import_mmdet; import_mmdet()'
say "done: $FOLDER has mmdet $("$python" -c 'from importlib.metadata import version as v; print(v("mmdet"), "mmcv-lite", v("mmcv-lite"), "torch", v("torch"))')"
