#!/usr/bin/env bash
# Runs the tests with other versions of the dependencies: test-versions.sh oldest|newest [PYTEST-ARGUMENT...]
#
# oldest: the oldest transformers that pyproject.toml allows; newest: the newest releases of everything.
# Each has an environment of its own, .venv-oldest or .venv-newest.
set -euo pipefail

which=${1:?usage: test-versions.sh oldest|newest [PYTEST-ARGUMENT...]}
shift
venv=.venv-$which
bash scripts/create-venv.sh "$venv"
bash scripts/install-torch.sh "$venv"
case $which in
oldest)
    oldest=$(grep -oP '"transformers>=\K[0-9.]+' pyproject.toml)
    pins=$(mktemp)
    grep -v '^transformers' "$venv/constraints.txt" >"$pins"
    "$venv/bin/python" -m pip install -c "$pins" -e '.[dev]' "transformers==$oldest.0"
    ;;
newest)
    torch=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')
    "$venv/bin/python" -m pip install --upgrade --upgrade-strategy eager -e '.[dev]' "torch==$torch"
    ;;
*)
    echo "There are oldest and newest, not $which." >&2
    exit 1
    ;;
esac
"$venv/bin/python" -m pip list 2>/dev/null | grep -E '^(torch|transformers|peft|accelerate|tokenizers) '
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$venv/bin/python" -m pytest -n auto --maxprocesses=8 --dist worksteal "$@"
