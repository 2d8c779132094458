#!/bin/sh
# Installs engines that `make test-kfp` runs into a folder, each once: engines.sh FOLDER NAME...
# with the environment's `python` on the PATH.
# kfp, of Kubeflow Pipelines 2, gets an environment of its own, as it can't be installed beside TFX 1.15;
# argo, its command line, is built from its Go module. Where one can't be had, its test skips; the reason
# is in the folder's NAME.log.
set -u
folder=$1
kfp="kfp==2.17.3 kfp-kubernetes==2.17.3 docker==7.2.0"
# What else they need, as of this day.
newest=2026-11-01T00:00:00Z
argo=github.com/argoproj/argo-workflows/v3/cmd/argo@v3.6.5
PATH="$PATH:/usr/local/go/bin"
mkdir -p "$folder/bin"

install_kfp() {
    # Not the packages' date of this project, in pyproject.toml.
    .uv/bin/uv --no-config venv -q --clear --python "$(command -v python)" "$folder/kfp" &&
        # shellcheck disable=SC2086
        .uv/bin/uv --no-config pip install -q --python "$folder/kfp" --exclude-newer "$newest" $kfp
}

install_argo() {
    command -v go >/dev/null || {
        echo "expected Go 1.23 or newer on the PATH, found none"
        return 1
    }
    # In a module of its own: `go install` also asks for newer versions, which a proxy may not list.
    rm -rf "$folder/module" && mkdir "$folder/module" && (
        cd "$folder/module" && go mod init engines && go get "$argo" && go build -o ../bin/argo "${argo%@*}"
    )
}

# name and version: skips an engine that is there already.
engine() {
    [ "$(cat "$folder/$1.version" 2>/dev/null)" = "$2" ] && return
    printf 'Installing %s\n' "$2" >&2
    rm -f "$folder/$1.version"
    if "install_$1" >"$folder/$1.log" 2>&1; then
        printf '%s' "$2" >"$folder/$1.version"
    else
        # Errors of several lines end in hints: more than the last line.
        printf '%s could not be installed, its test skips: %s\n' "$1" \
            "$(tail -c 300 "$folder/$1.log" | tr -s '\n ' ' ')" >&2
    fi
}

shift
for name in "$@"; do
    case "$name" in
    kfp) engine kfp "$kfp" ;;
    argo) engine argo "$argo" ;;
    *) printf 'error: ENGINES: expected names among kfp, argo, found "%s"\n' "$name" >&2 && exit 2 ;;
    esac
done
