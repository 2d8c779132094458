#!/bin/sh
# Makes the environment .venv with exactly the packages of a lock, in one of two stacks:
#   current  Python 3.11 to 3.13, TensorFlow 2.21, Keras 3, TFX 1.21 (requirements-current.lock)
#   2.15     Python 3.10, TensorFlow 2.15, Keras 2, TFX 1.15 (requirements.lock)
# Takes the current one where the C library is new enough for TFX 1.21, else 2.15. STACK=current or
# STACK=2.15 insists, in .venv-$STACK. On a machine with an NVIDIA GPU CUDA's libraries are added
# (GPU=1: always, GPU=0: never). Looks for Python in $PYTHON, on the PATH and in pyenv, and lets uv
# download it otherwise.
set -eu
cd -- "$(dirname -- "$0")"
uv_version=0.8.22
# The C library that the wheels of the current TFX ask for (2.39), and the packages that ask for it.
tfx_glibc=39
tfx_packages="tfx|ml-metadata|tensorflow-data-validation|tensorflow-model-analysis"

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# A pyenv shim or a removed interpreter can be on the PATH and yet not run: try it.
python_minor() {
    "$1" -c 'import sys; print(sys.version_info[1] if sys.version_info[0] == 3 else 0)' 2>/dev/null ||
        echo 0
}

fits() {
    case " $minors " in *" $(python_minor "$1") "*) true ;; *) false ;; esac
}

# Prints the first Python of the stack's versions on this machine; the best version comes first.
find_python() {
    for minor in $minors; do
        for candidate in "python3.$minor" python3 python \
            "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor"*/bin/python3."$minor"; do
            if [ "$(python_minor "$candidate")" = "$minor" ]; then
                command -v -- "$candidate"
                return
            fi
        done
    done
    return 1
}

# The same, or downloads the best version.
have_python() {
    find_python && return
    best=3.${minors%% *}
    printf 'No Python %s found: trying to download one with uv\n' "$best" >&2
    if "$uv" python install -q "$best" >/dev/null 2>&1; then
        "$uv" python find "$best" && return
    fi
    return 1
}

use_stack() {
    stack=$1
    case "$stack" in
    current) minors="12 13 11" versions="Python 3.11, 3.12 or 3.13" suffix=-current example=3.12 ;;
    2.15) minors="10" versions="Python 3.10" suffix="" example=3.10 ;;
    *) fail "STACK=$stack: expected current (Python 3.11 to 3.13, TensorFlow 2.21), 2.15" \
        "(Python 3.10, TensorFlow 2.15) or nothing, which chooses" ;;
    esac
    lock=requirements$suffix.lock gpu_lock=requirements$suffix-gpu.lock
}

# Sets the stack: what STACK says, or the one of $PYTHON, or the current one where it runs whole.
choose_stack() {
    if [ -n "${STACK:-}" ]; then
        use_stack "$STACK"
    elif [ -n "${PYTHON:-}" ]; then
        use_stack current
        if ! fits "$PYTHON"; then
            use_stack 2.15
        elif [ "$glibc" -lt "$tfx_glibc" ]; then
            fail "PYTHON=$PYTHON: expected a Python 3.10, found $("$PYTHON" --version 2>&1), whose" \
                "TFX needs glibc 2.$tfx_glibc; this machine has 2.$glibc. Unset PYTHON, or give" \
                "STACK=current too for everything but the pipeline."
        fi
    else
        use_stack current
        [ "$glibc" -ge "$tfx_glibc" ] && find_python >/dev/null && return
        use_stack 2.15
        [ "$glibc" -ge "$tfx_glibc" ] && ! find_python >/dev/null && use_stack current
    fi
    return 0
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || fail "PYTHON=$PYTHON: expected a $versions, found" \
            "$("$PYTHON" --version 2>&1 || true). Unset PYTHON or point it to a python$example."
        command -v -- "$PYTHON"
        return
    fi
    have_python || fail "expected $versions on this machine, found none and could not download one." \
        "Install it ('pyenv install $example', 'conda create -n ahnet python=$example' or your" \
        "system's package manager) and run 'make env PYTHON=/path/to/python$example'."
}

install_uv() {
    [ "$("$uv" --version 2>/dev/null || true)" = "uv $uv_version" ] && return
    for candidate in "${PYTHON:-python3}" python3 python3.10 python \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3; do
        if "$candidate" -m pip --version >/dev/null 2>&1; then
            "$candidate" -m pip install -q --disable-pip-version-check --no-warn-script-location \
                --root-user-action=ignore --break-system-packages --upgrade \
                --target .uv "uv==$uv_version" 2>.uv.log || {
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
    sed -n '/^pyfarmhash==/,/[^\\]$/p' "$lock" >"$venv/compiled.txt"
    "$uv" pip install -q --python "$venv/bin/python" --no-deps --require-hashes \
        -r "$venv/compiled.txt" 2>"$venv/uv.log" && return
    if ! grep -q 'Failed to build' "$venv/uv.log" || command -v g++ >/dev/null 2>&1; then
        cat "$venv/uv.log" >&2
    fi
    grep -q 'Failed to build' "$venv/uv.log" ||
        fail "uv could not install pyfarmhash (its message is above)."
    fail "expected a C++ compiler and Python's headers, to build pyfarmhash for TFX, which has no" \
        "wheels. Install them, for instance with 'apt-get install g++ python3-dev', and try again."
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "expected Linux on x86_64, found $(uname -sm):" \
    "TFX has wheels for that platform only. Use the Dockerfile, or a Linux machine."
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc 2\.\([0-9]*\).*/\1/p')
[ "${glibc:-0}" -ge 28 ] || fail "expected glibc 2.28 or newer, found" \
    "${glibc:+2.}${glibc:-another C library}: packages of the locks have no wheels for it." \
    "Use the Dockerfile, or a system such as Debian 12, Ubuntu 22.04 or RHEL 9."

# Two makes at once would undo each other's work: the second one waits.
exec 9>.environment.lock
if command -v flock >/dev/null 2>&1; then flock 9; fi

venv=.venv${STACK:+-$STACK}
choose_stack

# Unless it is said, what the environment has already, or what the machine has.
gpu="${GPU:-}"
if [ -z "$gpu" ]; then
    gpu=0
    for sign in /dev/nvidia0 "$venv"/lib/python3.*/site-packages/nvidia/cudnn; do
        if [ -e "$sign" ]; then gpu=1; fi
    done
fi
case "$gpu" in 0 | 1) ;; *) fail "GPU=$gpu: expected 1 (with CUDA's libraries), 0 or nothing" ;; esac

stamp="$(cat "$lock" "$gpu_lock" setup.py environment.sh | cksum) $stack $gpu $PWD"
if [ "$(cat "$venv/.complete" 2>/dev/null || true)" = "$stamp" ] && "$venv/bin/python" -c ''; then
    exit 0
fi

uv=.uv/bin/uv
export UV_PYTHON_INSTALL_DIR="$PWD/.uv/python" UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-120}"
install_uv
python=$(choose_python)
printf 'Making %s with %s\n' "$venv" "$("$python" --version) of $python" >&2
"$uv" venv -q --clear --python "$python" "$venv"
packages=$lock
if [ "$stack" = 2.15 ]; then
    install_compiled
elif [ "$glibc" -lt "$tfx_glibc" ]; then
    printf 'Without the pipeline: its TFX needs glibc 2.%s, found 2.%s\n' "$tfx_glibc" "$glibc" >&2
    packages=$venv/packages.txt
    sed -E "/^($tfx_packages)==/,/[^\\\\]\$/d" "$lock" >"$packages"
fi
printf 'Installing %s locked packages (2.6 GB; minutes on a slow line)\n' \
    "$(grep -c '^[a-z].*==' "$packages")" >&2
"$uv" pip sync -q --python "$venv/bin/python" --require-hashes "$packages"
if [ "$gpu" = 1 ]; then
    printf "Installing CUDA's libraries for the GPU (2 GB; GPU=0 leaves them out)\n" >&2
    "$uv" pip install -q --python "$venv/bin/python" --no-deps --require-hashes -r "$gpu_lock"
fi
"$uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
printf '%s' "$stamp" >"$venv/.complete"
