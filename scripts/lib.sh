# lib.sh: what the scripts share: set up this machine and this checkout, and say what is going on.
#
# How it works   Sourced, never run. Each `ensure_*` looks first and does something only when it is missing,
#                so that a second call costs a fraction of a second. Long output goes to build/logs/NAME.log;
#                its last lines are shown when the step fails.
# Owner          .venv holds the virtual environment and the stamps of what was installed into it: removing
#                .venv is always safe. One set-up at a time (a lock on build/setup.lock).
# Errors         `die`: one line that says what is wrong and what to do, exit 1.
# shellcheck shell=bash

ROOT=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
VENV=$ROOT/.venv
BUILD=$ROOT/build
LOGS=$BUILD/logs

# What `scripts/run` needs: an interpreter, a linker for Rust, two Python packages with C in them, NBD's tools.
APT_RUN=(python3 python3-venv gcc libc6-dev python3-crcmod python3-pyudev python3-libnbd libnbd-bin)
# What `scripts/test` needs besides: the real clients, file systems and tools that the tests drive.
APT_TEST=(nbd-client nbdkit nbdkit-plugin-python qemu-utils fio xfsprogs e2fsprogs fuse3 mount strace
    openssl shellcheck systemd g++ fdisk lvm2 postgresql libfaketime)
# What an installation needs besides the wheel and what it brings (scripts/install, scripts/build-deb).
APT_INSTALL=(python3-crcmod python3-pyudev python3-systemd python3-libnbd)
# What `scripts/test --host` needs: a machine in software, and what makes its disk.
APT_HOST=(qemu-system-x86 qemu-utils debootstrap cpio kmod)

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# logged NAME COMMAND...: run quietly; on failure show the end of the log and stop.
logged() {
    local name=$1 log=$LOGS/$1.log
    shift
    mkdir -p "$LOGS"
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 25 "$log" >&2
        die "$name failed; the lines above are the end of $log"
    fi
}

# What `scripts/bench` needs besides: servers to compare with, what draws the charts, what tells where time goes.
APT_BENCH=(nbd-server python3-matplotlib linux-perf valgrind)

# set_up_bench: what scripts/bench and scripts/flame need, the engine's examples built.
set_up_bench() {
    ensure_apt bench
    set_up test
    find_cargo || ensure_rust
    logged bench-build cargo build --release --locked --no-default-features --examples \
        --manifest-path engine/Cargo.toml
    export PYTHONPATH=$ROOT
}

# ensure_apt run|test|bench|install|host: the Debian packages of that purpose are installed.
ensure_apt() {
    local wanted=("${APT_RUN[@]}") installed package missing=()
    case $1 in
    test) wanted+=("${APT_TEST[@]}") ;;
    bench) wanted=("${APT_BENCH[@]}") ;;
    install) wanted=("${APT_INSTALL[@]}") ;;
    host) wanted=("${APT_HOST[@]}") ;;
    esac
    if ! command -v dpkg-query >/dev/null; then
        say "Not a Debian system: install by hand what is missing of: ${wanted[*]}"
        return
    fi
    # dpkg-query fails when one of the names is unknown to it; what it prints is what counts.
    # shellcheck disable=SC2016 # the braces are dpkg-query's
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null || true)
    for package in "${wanted[@]}"; do
        grep -qx "installed $package" <<<"$installed" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "not root and no sudo here: run as root, or have installed first:" \
            "apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "Installing Debian packages: ${missing[*]}"
    logged apt-update "${as_root[@]}" apt-get update
    logged apt-install "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}"
}

# find_cargo: put cargo on PATH, where rustup keeps it too.
find_cargo() {
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    export PATH
    command -v cargo >/dev/null
}

# ensure_rust: a Rust toolchain that is new enough (engine/Cargo.toml says how new).
ensure_rust() {
    local needed found how
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/engine/Cargo.toml")
    how="install it with rustup (https://rustup.rs; Debian 12's own is too old), then run this again"
    find_cargo || die "Rust $needed or newer is needed and no cargo was found: $how"
    found=$(cd "$ROOT/engine" && cargo --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n 1)" = "$needed" ] ||
        die "Rust $needed or newer is needed and $(command -v cargo) is $found: $how"
}

# sources_hash PURPOSE: changes when an installation for that purpose would come out different.
sources_hash() {
    {
        printf '%s %s\n' "$ROOT" "$1"
        cat "$ROOT/pyproject.toml" "$ROOT/engine/Cargo.toml" "$ROOT/engine/Cargo.lock"
        find "$ROOT/engine/src" -type f -print0 | sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d ' ' -f 1
}

# ensure_installed run|test: the virtual environment has polyvol (editable), its engine built from these sources.
ensure_installed() {
    local purpose=$1 hash extras=""
    [ "$purpose" = test ] && extras="[test]"
    hash=$(sources_hash "$purpose")
    if [ -e "$ROOT/engine/python/engine.abi3.so" ] &&
        { [ "$(cat "$VENV/stamp-$purpose" 2>/dev/null)" = "$hash" ] ||
            { [ "$purpose" = run ] && [ "$(cat "$VENV/stamp-test" 2>/dev/null)" = "$(sources_hash test)" ]; }; }; then
        return
    fi
    ensure_rust
    if [ "$(cat "$VENV/stamp-root" 2>/dev/null)" != "$ROOT" ]; then
        say "Making the virtual environment .venv"
        logged venv /usr/bin/python3 -m venv --clear --system-site-packages "$VENV"
        logged venv-tools "$VENV/bin/pip" install --disable-pip-version-check \
            'setuptools>=77' 'packaging>=24.2' 'setuptools-rust>=1.12' wheel
        printf '%s' "$ROOT" >"$VENV/stamp-root"
    fi
    say "Building the engine and installing polyvol into .venv (minutes the first time)"
    logged install "$VENV/bin/pip" install --disable-pip-version-check --no-build-isolation \
        --editable "$ROOT$extras"
    printf '%s' "$hash" >"$VENV/stamp-$purpose"
}

# set_up run|test: everything above, one at a time.
set_up() {
    mkdir -p "$BUILD"
    exec 9>"$BUILD/setup.lock"
    flock -n 9 || {
        say "Waiting for another set-up of this checkout to end"
        flock 9
    }
    ensure_apt "$1"
    ensure_installed "$1"
    exec 9>&-
}
