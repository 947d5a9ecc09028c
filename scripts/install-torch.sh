#!/usr/bin/env bash
# Installs the torch build that suits this machine: install-torch.sh VENV
#
# An importable torch is left as it is. With an NVIDIA GPU, pip's default build comes; without one, the CPU
# build from PyTorch's own index, or from pip's configured sources where that index does not answer.
# Then writes VENV/constraints.txt: constraints.txt with torch pinned to the build that is now installed.
set -euo pipefail

venv=${1:?usage: install-torch.sh VENV}
python=$venv/bin/python
cpu_index=https://download.pytorch.org/whl/cpu
pin=$(grep '^torch==' constraints.txt)

# In a thread, because a timeout on a connection does not cover looking up the host's name.
cpu_index_answers() {
    "$python" - "$cpu_index/torch/" <<'PY'
import os, sys, threading, urllib.request

answered = []

def probe():
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=5):
            answered.append(True)
    except Exception:
        pass

thread = threading.Thread(target=probe, daemon=True)
thread.start()
thread.join(5)
os._exit(0 if answered else 1)
PY
}

install_cpu_build() {
    if cpu_index_answers; then
        echo "Installing $pin for the CPU from $cpu_index"
        "$python" -m pip install --retries 0 --timeout 10 --index-url "$cpu_index" "$pin" && return
        echo "That failed; installing $pin from pip's configured sources instead"
    else
        echo "$cpu_index did not answer within 5 seconds; installing $pin from pip's configured sources"
    fi
    "$python" -m pip install "$pin"
    if [[ $("$python" -m pip list 2>/dev/null) == *nvidia-* ]]; then
        echo "Note: pip's sources gave the CUDA build of torch. It works without a GPU, but is large." >&2
    fi
}

if "$python" -c 'import torch' >/dev/null 2>&1; then
    echo "Keeping the torch that is in $venv"
elif nvidia-smi -L >/dev/null 2>&1; then
    echo "An NVIDIA GPU is here: installing torch from pip's default source"
    "$python" -m pip install torch
else
    echo "No NVIDIA GPU is here"
    install_cpu_build
fi

version=$("$python" -c 'from importlib.metadata import version; print(version("torch"))')
sed "s/^torch==.*/torch==$version/" constraints.txt >"$venv/constraints.txt"
echo "torch $version"
