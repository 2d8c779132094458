#!/bin/sh
# Runs commands on a copy of this checkout in a bare Debian 13 (trixie), whose C library and Python 3.13 let
# `make env` choose the current stack whole, TFX included. As root, with debootstrap installed:
#     tests/trixie.sh ROOT [COMMAND]...        tests/trixie.sh /var/tmp/trixie 'make demo' 'make test'
# ROOT is a folder, made where it is missing (450 MB, with the environment 4 GB) and kept for the next time.
# The commands run one after the other as an ordinary user; the first failure ends the script. Without
# commands: make demo, then make test. MIRROR names a mirror of Debian other than that of this machine's apt.
set -eu

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

[ $# -gt 0 ] || fail "expected the folder of the root: tests/trixie.sh ROOT [COMMAND]..."
[ "$(id -u)" = 0 ] || fail "expected root rights, for chroot and mounts."
command -v debootstrap >/dev/null || fail "expected debootstrap (apt-get install debootstrap)."
checkout=$(cd -- "$(dirname -- "$0")/.." && pwd)
root=$(realpath -m -- "$1")
shift
[ $# -gt 0 ] || set -- "make demo" "make test"

# Mounts and processes live in namespaces of their own: whatever ends this script ends them, and nothing of
# this machine is ever mounted in the root for those outside.
if [ -z "${TRIXIE_INSIDE:-}" ]; then
    TRIXIE_INSIDE=1 exec unshare --mount --pid --fork --kill-child -- "$0" "$root" "$@"
fi

# The image has what the README asks for: Python, make and git; pip installs uv. There is no compiler.
packages=ca-certificates,git,make,python3,python3-pip
if [ ! -d "$root" ]; then
    mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null |
        sed -n '/\/debian\/*$/{p;q;}')}
    partial=$root.partial
    rm -rf -- "$partial"
    mkdir -p -- "$(dirname -- "$root")"
    log=$partial.log
    debootstrap --variant=minbase --include="$packages" trixie "$partial" \
        "${mirror:-http://deb.debian.org/debian}" >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        fail "debootstrap made no root (its last lines are above)."
    }
    chroot "$partial" useradd --create-home --shell /bin/bash ahnet
    rm -f -- "$log"
    mv -- "$partial" "$root"
fi

mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"

# How this machine reaches its package index.
for path in /etc/ssl/certs/ca-certificates.crt /etc/resolv.conf /etc/hosts /etc/pip.conf; do
    [ ! -f "$path" ] || cp -L -- "$path" "$root$path"
done
passed="HOME=/home/ahnet USER=ahnet LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin"
for name in SSL_CERT_FILE UV_DEFAULT_INDEX UV_INDEX_URL UV_HTTP_TIMEOUT PIP_INDEX_URL PIP_CERT \
    PIP_DEFAULT_TIMEOUT HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    value=$(printenv "$name" || true)
    [ -z "$value" ] || passed="$passed $name=$value"
done

# Runs a line of shell in the copy of the checkout.
inside() {
    # No value has a space.
    # shellcheck disable=SC2086
    chroot --userspec=ahnet:ahnet "$root" env -i $passed sh -c "cd ~/checkout && $1"
}

# The copy is a repository of its own, because tests ask git for the project's files; what the last copy
# brought goes first, what git ignores (the environment) stays.
chroot --userspec=ahnet:ahnet "$root" mkdir -p /home/ahnet/checkout
inside 'git init -q && git ls-files -z | xargs -0 -r rm -f --'
(cd "$checkout" && git ls-files -z --cached --others --exclude-standard --deduplicate |
    xargs -0 sh -c 'for path; do [ ! -e "$path" ] || printf "%s\0" "$path"; done' sh |
    tar --create --null --files-from=-) | inside 'tar --extract --no-same-owner'
inside 'git add --all && git -c user.name=ahnet -c user.email=ahnet@localhost commit -q --allow-empty -m Copy'

for command; do
    printf '+ %s\n' "$command"
    inside "$command"
done
