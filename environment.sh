#!/bin/sh
# Makes the environment .venv: Python 3.10 with exactly the packages of requirements.lock, and on a
# machine with an NVIDIA GPU CUDA's libraries of requirements-gpu.lock (GPU=1: always, GPU=0: never).
# Looks for Python 3.10 in $PYTHON, on the PATH, in pyenv, and lets uv download it otherwise.
set -eu
cd -- "$(dirname -- "$0")"
uv_version=0.8.22

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# A pyenv shim or a removed interpreter can be on the PATH and yet not run: try it.
is_python310() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' >/dev/null 2>&1
}

find_python310() {
    if [ -n "${PYTHON:-}" ]; then
        is_python310 "$PYTHON" || fail "PYTHON=$PYTHON: expected a Python 3.10, found" \
            "$("$PYTHON" --version 2>&1 || true). Unset PYTHON or point it to a python3.10."
        command -v -- "$PYTHON"
        return
    fi
    for candidate in python3.10 python3 python \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10*/bin/python3.10; do
        if is_python310 "$candidate"; then
            command -v -- "$candidate"
            return
        fi
    done
    printf 'No Python 3.10 found: trying to download one with uv\n' >&2
    if "$uv" python install -q 3.10 >/dev/null 2>&1; then
        "$uv" python find 3.10 && return
    fi
    fail "expected Python 3.10 on this machine, found none and could not download one." \
        "Install it ('pyenv install 3.10', 'conda create -n py310 python=3.10' or your system's" \
        "package manager) and run 'make env PYTHON=/path/to/python3.10'."
}

install_uv() {
    [ "$("$uv" --version 2>/dev/null || true)" = "uv $uv_version" ] && return
    for candidate in "${PYTHON:-python3}" python3 python3.10 python \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3; do
        if "$candidate" -m pip --version >/dev/null 2>&1; then
            "$candidate" -m pip install -q --disable-pip-version-check --no-warn-script-location \
                --root-user-action=ignore --upgrade --target .uv "uv==$uv_version" 2>.uv.log || {
                cat .uv.log >&2
                rm -f .uv.log
                fail "pip could not install uv $uv_version (its message is above)."
            }
            rm -f .uv.log
            return
        fi
    done
    fail "expected a Python with pip, found none. Install it, for instance with" \
        "'apt-get install python3-pip', and try again."
}

# The one package without wheels comes first: without a compiler, nothing else is downloaded.
install_compiled() {
    sed -n '/^pyfarmhash==/,/[^\\]$/p' requirements.lock >.venv/compiled.txt
    "$uv" pip install -q --python .venv/bin/python --no-deps --require-hashes \
        -r .venv/compiled.txt 2>.venv/uv.log && return
    if ! grep -q 'Failed to build' .venv/uv.log || command -v g++ >/dev/null 2>&1; then
        cat .venv/uv.log >&2
    fi
    grep -q 'Failed to build' .venv/uv.log ||
        fail "uv could not install pyfarmhash (its message is above)."
    fail "expected a C++ compiler and Python's headers, to build pyfarmhash for TFX, which has no" \
        "wheels. Install them, for instance with 'apt-get install g++ python3-dev', and try again."
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "expected Linux on x86_64, found $(uname -sm):" \
    "TFX 1.15 has wheels for that platform only. Use the Dockerfile, or a Linux machine."

# Two makes at once would undo each other's work: the second one waits.
exec 9>.environment.lock
if command -v flock >/dev/null 2>&1; then flock 9; fi

# Unless it is said, what the environment has already, or what the machine has.
gpu="${GPU:-}"
if [ -z "$gpu" ]; then
    gpu=0
    for sign in /dev/nvidia0 .venv/lib/python3.10/site-packages/nvidia/cudnn; do
        if [ -e "$sign" ]; then gpu=1; fi
    done
fi
case "$gpu" in 0 | 1) ;; *) fail "GPU=$gpu: expected 1 (with CUDA's libraries), 0 or nothing" ;; esac

stamp="$(cat requirements.lock requirements-gpu.lock setup.py environment.sh | cksum) $gpu $PWD"
if [ "$(cat .venv/.complete 2>/dev/null || true)" = "$stamp" ] && .venv/bin/python -c ''; then
    exit 0
fi

uv=.uv/bin/uv
export UV_PYTHON_INSTALL_DIR="$PWD/.uv/python" UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-120}"
install_uv
python310=$(find_python310)
printf 'Making .venv with %s\n' "$("$python310" --version) of $python310" >&2
"$uv" venv -q --clear --python "$python310" .venv
install_compiled
printf 'Installing %s locked packages (2.6 GB; minutes on a slow line)\n' \
    "$(grep -c '^[a-z].*==' requirements.lock)" >&2
"$uv" pip sync -q --python .venv/bin/python --require-hashes requirements.lock
if [ "$gpu" = 1 ]; then
    printf "Installing CUDA's libraries for the GPU (2 GB; GPU=0 leaves them out)\n" >&2
    "$uv" pip install -q --python .venv/bin/python --no-deps --require-hashes -r requirements-gpu.lock
fi
"$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation --editable .
printf '%s' "$stamp" >.venv/.complete
