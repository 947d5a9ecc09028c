#!/usr/bin/env bash
# Creates a virtual environment, unless a working one is there: create-venv.sh FOLDER
# PYTHON names the interpreter; without it, the first suitable one on PATH is taken.
set -euo pipefail

venv=${1:?usage: create-venv.sh FOLDER}

# A name on PATH may be a stub that fails, so each candidate has to run.
suitable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

if suitable "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

chosen=
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3}; do
    if suitable "$candidate"; then
        chosen=$candidate
        break
    fi
done
if [[ -z $chosen ]]; then
    if [[ -n ${PYTHON:-} ]]; then
        echo "PYTHON=$PYTHON is not a working Python of version 3.10 or newer." >&2
    else
        echo "No working Python of version 3.10 or newer is on PATH." >&2
    fi
    echo "Install one (https://www.python.org/downloads/), or name one: make PYTHON=/path/to/python3" >&2
    exit 1
fi

echo "Creating $venv with $chosen ($("$chosen" --version))"
if ! "$chosen" -m venv --clear "$venv"; then
    echo "$chosen could not create $venv. On Debian and Ubuntu, install its venv package:" >&2
    "$chosen" -c 'import sys; print("    sudo apt install python%d.%d-venv" % sys.version_info[:2])' >&2
    exit 1
fi
