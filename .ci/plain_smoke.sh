#!/usr/bin/env bash
# Installs ilrec on its metadata alone, in a venv of its own, and runs the main path there: with
# imitation among the dependencies, pip settles on Stable-Baselines3 2.2 and Gymnasium 0.29.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv-plain}"
export OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export ILREC_CACHE="$(mktemp -d)"
trap 'rm -rf "$ILREC_CACHE"' EXIT

key="$("$PYTHON" -c 'import hashlib, tomllib
metadata = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(hashlib.sha256(repr(metadata).encode()).hexdigest()[:16])')"
stamp="$VENV/.installed-$key"
if [ ! -e "$stamp" ]; then
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet "$(grep '^torch==' requirements.txt)"
    rm -rf build ilrec.egg-info
    "$VENV/bin/python" -m pip install --quiet .
    touch "$stamp"
fi
# The package itself is always the one of this working tree.
rm -rf build ilrec.egg-info
"$VENV/bin/python" -m pip install --quiet --no-deps --force-reinstall .
rm -rf build ilrec.egg-info
"$VENV/bin/python" -m pip check

# From elsewhere, so that the installed package is what is imported.
smoke="$PWD/.ci/plain_smoke.py"
python="$PWD/$VENV/bin/python"
cd "$ILREC_CACHE"
"$python" "$smoke"
