#!/usr/bin/env bash
# Make the Python environment of a TPU host: runs on the host, in the project's folder.
#
#   bash scripts/setup_tpu_host.sh
#
# Installs requirements.txt into .venv, and libtpu, the TPU's driver, through torch-xla's extra
# "tpu", which pins the version that this torch-xla was built for. Done already: does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if cmp -s requirements.txt .venv/installed; then exit 0; fi

# usable PYTHON: has a version that the project runs on, and can make environments.
usable() {
    "$1" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        2> /dev/null
}

python=
for candidate in python3.13 python3.12 python3.11 python3; do
    if usable "$candidate"; then python=$candidate && break; fi
done
rm -rf .venv
if [[ -n $python ]]; then
    "$python" -m venv .venv
else # TPU images on Ubuntu 22.04 have Python 3.10; uv brings a newer one without root
    python3 -m pip install --user --quiet uv==0.13.9
    python3 -m uv venv --quiet --seed --python 3.12 .venv
fi
torch_xla=$(sed -n 's/^torch-xla==\([^; ]*\).*/torch-xla[tpu]==\1/p' requirements.txt)
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -r requirements.txt "${torch_xla:?requirements.txt does not pin torch-xla}"
cp requirements.txt .venv/installed
