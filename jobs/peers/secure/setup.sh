#!/bin/bash
# The peers' environments, each from PyPI: ROOT=FOLDER bash jobs/peers/secure/setup.sh [crypten] [spu]
# PyTorch comes first, so that nothing else pulls another build of it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "${ROOT:?a folder for the environments}"

environment() {
  [ -x "$1/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$1"
}

crypten() {
  environment crypten
  crypten/bin/pip install -q torch==2.13.0
  crypten/bin/pip install -q --no-deps crypten==0.4.1
  crypten/bin/pip install -q numpy==2.4.6 'setuptools<80' pyyaml omegaconf onnx==1.23.2 psutil tensorboard
  PYTHONPATH=$here crypten/bin/python -c 'import crypten_import, crypten'
}

spu() {
  environment spu
  spu/bin/pip install -q spu==0.9.5
  spu/bin/python -c 'import spu, spu.utils.simulation'
}

for peer in ${@:-crypten spu}; do
  echo "== $peer"
  "$peer"
done
