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

# What `scripts/run` needs: an interpreter, a linker for Rust, two Python packages with C in them, NBD's tools, and the
# certificates of the registries that pip and cargo fetch from.
APT_RUN=(python3 python3-venv gcc libc6-dev python3-crcmod python3-pyudev python3-libnbd libnbd-bin ca-certificates)
# What `scripts/test` needs besides: the real clients, file systems and tools that the tests drive.
APT_TEST=(git nbd-client nbdkit nbdkit-plugin-python qemu-utils fio xfsprogs e2fsprogs fuse3 mount strace
    openssl shellcheck systemd g++ fdisk lvm2 postgresql libfaketime iproute2 xz-utils)
# What an installation needs besides the wheel and what it brings (scripts/install, scripts/build-deb).
APT_INSTALL=(python3-crcmod python3-pyudev python3-systemd python3-libnbd)
# What `scripts/build-deb` needs besides.
APT_DEB=(dpkg-dev debhelper dh-python po-debconf lintian)
# What `scripts/test --host` needs: a machine in software, and what makes its disk.
APT_HOST=(qemu-system-x86 qemu-utils debootstrap cpio kmod)
# What `scripts/bench` needs besides: servers to compare with, what draws the charts, what tells where time goes.
APT_BENCH=(nbd-server python3-matplotlib linux-perf valgrind)
# Rust, where no new enough one is here: Debian's packages that follow what browsers need, and their rustfmt and clippy.
APT_RUST=(cargo-web rustc-web)
APT_RUST_TEST=(rustfmt-web rust-web-clippy)
# What a set-up writes: packages, the virtual environment, the engine's build.
DISK_MB_RUN=3000
DISK_MB_TEST=11000
PYTHON_MIN=3.11
# Seconds until a step says how far it is, and between two times.
PROGRESS_FIRST_S=5
PROGRESS_EVERY_S=10
# How long to wait for another program that holds apt's or dpkg's locks, as unattended upgrades do.
APT_LOCK_S=900
# How long a registry may take to accept a connection.
REACH_S=20

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# asks_for_help ARGUMENT...: whether --help or -h is among a script's own arguments (those before --).
asks_for_help() {
    local argument
    for argument in "$@"; do
        case $argument in
        --help | -h) return 0 ;;
        --) return 1 ;;
        esac
    done
    return 1
}

# help_first ARGUMENT...: where help is asked for, print what the script's function usage prints, and end.
help_first() {
    ! asks_for_help "$@" || { usage; exit 0; }
}

# options_first ARGUMENT...: for a script whose options a Python module takes: where one is not among those that the
# script's function usage lists, or lacks its value, say so and end with 2, before anything is set up.
options_first() {
    local option kind listed
    listed=$(usage)
    while [ $# -gt 0 ]; do
        option=${1%%=*}
        kind=$(OPTION=$option awk '$1 == ENVIRON["OPTION"] && /^  --/ { print $2 ~ /^[A-Z]+$/ ? $2 : "none" }' <<<"$listed")
        case $kind:$1 in
        :*) wrong_option "there is no option '$1'" ;;
        none:*=*) wrong_option "$option takes no value" ;;
        none:* | *:*=*) ;;
        *) [ $# -ge 2 ] || wrong_option "$option needs a value: $option $kind"; shift ;;
        esac
        [[ "$kind" != [NS] ]] || [[ ${1#"$option="} =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
            wrong_option "$option takes a number, and '${1#"$option="}' is none"
        shift
    done
}

# wrong_option TEXT: what is wrong with a script's options, its usage, and the end.
wrong_option() {
    printf '%s: %s\n' "scripts/${0##*/}" "$1" >&2
    usage >&2
    exit 2
}

# how_far LOG: what the end of a log says about how far its step is: apt's percentage, cargo's count, pip's package.
how_far() {
    tail -c 8000 "$1" 2>/dev/null | tr '\r' '\n' | sed -n \
        -e 's/^dlstatus:[^:]*:\([0-9]*\).*/fetching, \1 %/p' \
        -e 's/^pmstatus:[^:]*:\([0-9]*\).*/unpacking and setting up, \1 %/p' \
        -e 's/^ *\([A-Z][a-z]*\) \[[=> ]*\] \([0-9]*\)\/\([0-9]*\).*/\1 \2 of \3/p' \
        -e 's/^ *\(Collecting [^ ]*\).*/\1/p' -e 's/^ *\(Compiling [^ ]* [^ ]*\).*/\1/p' \
        -e 's/^  \([a-z-]*\): [0-9]* s, \(.*\)/\1: \2/p' -e 's/^ *\(dh_[a-z]*\)$/\1/p' \
        -e 's/^Waiting for cache lock: .* held by process \([0-9]*\) (\([^)]*\)).*/waiting for \2, process \1/p' \
        -e 's/^I: \(Retrieving\|Validating\|Unpacking\|Extracting\|Configuring\) \(.*\)/\1 \2/p' | tail -n 1
}

# tell_progress NAME LOG: until it is killed or this script has ended, say now and then how far a step is.
tell_progress() {
    local begun=$SECONDS next=$PROGRESS_FIRST_S far
    while [ -d "/proc/$$" ]; do
        sleep 1 >/dev/null 2>&1
        [ $((SECONDS - begun)) -ge "$next" ] || continue
        far=$(how_far "$2")
        printf '  %s: %d s%s\n' "$1" $((SECONDS - begun)) "${far:+, $far}" >&2
        next=$((SECONDS - begun + PROGRESS_EVERY_S))
    done
}

# with_progress NAME LOG COMMAND...: run with the output in LOG, and say on stderr how far it is; its exit code.
with_progress() {
    local name=$1 log=$2 teller code=0
    shift 2
    : >"$log"
    tell_progress "$name" "$log" 9>&- &
    teller=$!
    "$@" >"$log" 2>&1 </dev/null || code=$?
    kill "$teller" 2>/dev/null || true
    wait "$teller" 2>/dev/null || true
    return $code
}

# log_end LOG LINES: the end of a log (+1: all of it), without what only how_far reads.
log_end() { tr '\r' '\n' <"$1" | grep -vE '^(dl|pm)status:|^ *[A-Z][a-z]+ \[[=> ]*\] ' | tail -n "$2"; }

# logged NAME COMMAND...: run quietly but for progress; on failure show the end of the log and stop.
logged() {
    local name=$1 log=$LOGS/$1.log
    shift
    mkdir -p "$LOGS"
    if ! CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=80 with_progress "$name" "$log" "$@"; then
        log_end "$log" 25 >&2
        die "$name failed; the lines above are the end of $log"
    fi
}

# set_up_bench: what scripts/bench and scripts/flame need, the engine's examples built.
set_up_bench() {
    set_up test bench
    logged bench-build cargo build --release --locked --no-default-features --examples \
        --manifest-path engine/Cargo.toml
    export PYTHONPATH=$ROOT
}

# at_least NEEDED FOUND: whether the version FOUND is NEEDED or newer.
at_least() { [ -n "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

rust_needed() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/engine/Cargo.toml"; }

# rust_version PROGRAM: its version, nothing if it does not run (rustup's fails where no toolchain is installed).
rust_version() { (cd "$ROOT/engine" && "$1" --version 2>/dev/null | cut -d ' ' -f 2) || true; }

# find_rust: put a cargo and rustc that are new enough first on PATH: rustup's, else that of PATH, else Debian's.
find_rust() {
    local needed directory cargo
    needed=$(rust_needed) cargo=$(command -v cargo || true)
    for directory in "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin" "${cargo%/cargo}" /usr/bin; do
        if [ ! -x "$directory/cargo" ] || [ ! -x "$directory/rustc" ]; then continue; fi
        at_least "$needed" "$(rust_version "$directory/cargo")" || continue
        at_least "$needed" "$(rust_version "$directory/rustc")" || continue
        case $PATH in
        "$directory":*) ;;
        *) export PATH=$directory:$PATH ;;
        esac
        return 0
    done
    return 1
}

# rust_is_debians: whether the Rust that find_rust has found is Debian's, and not one of rustup or made by hand.
rust_is_debians() { [ "$(command -v cargo)" = /usr/bin/cargo ] && dpkg-query -S /usr/bin/cargo >/dev/null 2>&1; }

# ensure_rust: what find_rust does, or the end.
ensure_rust() {
    find_rust || die "Rust $(rust_needed) or newer is needed: install it with rustup (https://rustup.rs), then run this again"
}

# wanted_packages PURPOSE...: the Debian packages of these purposes, one a line: run, test, bench, install, host, fresh, deb.
wanted_packages() {
    local purpose
    for purpose in "$@"; do
        case $purpose in
        run) printf '%s\n' "${APT_RUN[@]}" ;;
        test) printf '%s\n' "${APT_RUN[@]}" "${APT_TEST[@]}" ;;
        bench) printf '%s\n' "${APT_BENCH[@]}" ;;
        install) printf '%s\n' "${APT_INSTALL[@]}" ;;
        fresh) printf '%s\n' debootstrap ;;
        host) printf '%s\n' "${APT_HOST[@]}" ;;
        deb) printf '%s\n' "${APT_DEB[@]}" ;;
        esac
    done
}

# missing_of PACKAGE...: those that are not installed, one a line.
missing_of() {
    local installed package
    # dpkg-query fails when one of the names is unknown to it; what it prints is what counts.
    # shellcheck disable=SC2016 # the braces are dpkg-query's
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
    for package in "$@"; do
        grep -qx "installed $package" <<<"$installed" || printf '%s\n' "$package"
    done
}

# rust_packages PURPOSE...: the Debian packages of Rust that are to be installed for these purposes, one a line. To run
# what is built already needs none.
rust_packages() {
    local test=""
    [[ " $* " != *" test "* ]] || test=1
    if [ -z "$test" ] && { [[ " $* " != *" run "* ]] || is_installed run; }; then
        return
    elif ! find_rust; then
        [ "$(missing_of rustup)" = rustup ] || die "Rust $(rust_needed) or newer is needed, and rustup has an older" \
            "one or none: run \`rustup default stable\` and \`rustup update\`, then this again"
        printf '%s\n' "${APT_RUST[@]}"
        [ -z "$test" ] || printf '%s\n' "${APT_RUST_TEST[@]}"
    elif [ -n "$test" ] && ! { command -v cargo-fmt && command -v cargo-clippy; } >/dev/null; then
        rust_is_debians || die "$(command -v cargo) has no rustfmt or clippy, which scripts/test needs:" \
            "run \`rustup component add rustfmt clippy\`, then this again"
        printf '%s\n' "${APT_RUST_TEST[@]}"
    fi
}

# candidate PACKAGE: the version that apt would install, nothing if it has none.
candidate() { LC_ALL=C apt-cache policy "$1" | sed -n 's/^  Candidate: \(.*\)/\1/p' | grep -v '^(none)$' || true; }

# check_rust_candidate: dies, with what is to be done, where apt has no Rust that is new enough.
check_rust_candidate() {
    local needed found suite security
    needed=$(rust_needed) found=$(candidate rustc-web)
    ! at_least "$needed" "${found%%[+-]*}" || return 0
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016 # for apt-get to expand
    security=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        sed -n "s|^\(.*/debian\)/* $suite main\$|\1-security|p" | head -n 1)
    die "Rust $needed or newer is needed, and apt has ${found:+only $found of }rustc-web${found:+ }here: Debian's suite" \
        "$suite-security, which has a newer one, is missing from apt's sources. Add it, for instance by the line" \
        "\`deb ${security:-MIRROR/debian-security} $suite-security main\` in /etc/apt/sources.list.d/security.list," \
        "or install Rust with rustup (https://rustup.rs); then run this again. Nothing was installed.$UNREAD"
}

# check_disk NEEDED-MB: dies where the packages or the build would not find room.
check_disk() {
    local directory free
    for directory in "$ROOT" /usr; do
        free=$(df --output=avail -m "$directory" | tail -n 1)
        [ "$free" -ge "$1" ] || die "$directory has ${free// /} MB free, and about $1 MB are needed:" \
            "make room, then run this again. Nothing was installed."
    done
}

# become_root: AS_ROOT is what has a command run as root: nothing, or sudo, which has asked for what it asks for.
become_root() {
    AS_ROOT=()
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null || die "not root and no sudo here: run as root, or have installed first: apt-get install $*"
    sudo -n true 2>/dev/null || { say "Installing Debian packages needs root's rights:" && sudo -v; } ||
        die "sudo does not let this user become root: run as root, or have installed first: apt-get install $*"
    AS_ROOT=(sudo)
}

# check_install PACKAGE...: dies where apt cannot install them all; says what will be fetched.
check_install() {
    local package plan bytes removed version
    for package in "$@"; do
        [ -n "$(candidate "$package")" ] || die "apt has no package $package here: Debian 12 and 13 have it, others may" \
            "call it something else; install what it stands for by hand. Nothing was installed.$UNREAD"
    done
    version=$(candidate python3)
    at_least "$PYTHON_MIN" "$version" || die "Python $PYTHON_MIN or newer is needed, and apt has $version." \
        "Nothing was installed."
    plan=$(LC_ALL=C apt-get install -s -y --no-install-recommends "$@" 2>&1) ||
        die "apt cannot install the packages that are needed:"$'\n'"$plan"
    removed=$(sed -n 's/^Remv \([^ ]*\).*/\1/p' <<<"$plan" | tr '\n' ' ')
    bytes=$(apt-get install --print-uris -qq -y --no-install-recommends "$@" 2>/dev/null |
        awk '{ sum += $3 } END { printf "%d", sum / 1000000 }')
    say "Installing $(grep -c '^Inst ' <<<"$plan") Debian packages ($bytes MB to fetch): $* and what they need"
    [ -z "$removed" ] || say "They replace: $removed"
}

# lock_holder LOG: who holds the lock that apt has not got, from its log.
lock_holder() { sed -n 's/^E: Could not get lock .* held by process \([0-9]*\) (\(.*\))$/\2, process \1/p' "$1" | head -n 1; }

# apt_get NAME ARGUMENT...: as root, with progress and the output in a log; its exit code. It waits for another program
# that uses apt or dpkg. apt writes how far it is to descriptor 3, and closes that for what it starts.
apt_get() {
    local name=$1 log=$LOGS/$1.log begun=$SECONDS holder told="" code
    shift
    mkdir -p "$LOGS"
    while :; do
        code=0
        # shellcheck disable=SC2016 # for the shell that is root's
        with_progress "$name" "$log" "${AS_ROOT[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
            sh -c 'exec apt-get -o APT::Status-Fd=3 "$@" 3>&1' \
            apt-get -o "DPkg::Lock::Timeout=$APT_LOCK_S" "$@" || code=$?
        holder=$(lock_holder "$log")
        [ $code -ne 0 ] && [ -n "$holder" ] && [ $((SECONDS - begun)) -lt $APT_LOCK_S ] || return $code
        [ "$told" = "$holder" ] || say "Waiting for another program that uses apt: $holder"
        told=$holder
        sleep 2
    done
}

# apt_errors NAME: what apt has complained of, a few lines of it.
apt_errors() { log_end "$LOGS/$1.log" +1 | grep -E '^[EW]:' | awk '!seen[$0]++' | head -n 5; }

# read_sources: apt's lists are renewed. Where one of its sources cannot be read, that is said and remembered in
# UNREAD: an old list, or another source, may have what is needed.
read_sources() {
    UNREAD=""
    say "Asking apt what there is"
    apt_get apt-update -o APT::Update::Error-Mode=any update || {
        apt_errors apt-update >&2
        UNREAD=" apt could not read all of its sources, as told above: is the network there?"
        say "apt could not read all of its sources; going on with what it knows" >&2
    }
}

# check_registries: dies where pip and cargo cannot connect to what they fetch from. Not checked where a proxy or another
# registry is configured: only they know it then.
check_registries() {
    local host
    ! env | grep -qiE '^((https?|all)_proxy|pip_(index_url|no_index|proxy|config_file)|cargo_(http_proxy|source_.*))=' || return 0
    ! grep -qsE '^[[:space:]]*(index-url|no-index|proxy|replace-with)' /etc/pip.conf "${HOME:-/root}"/.pip/pip.conf \
        "${HOME:-/root}"/.config/pip/pip.conf "${CARGO_HOME:-${HOME:-/root}/.cargo}"/config{,.toml} || return 0
    ! git config --get http.proxy >/dev/null 2>&1 || return 0
    for host in pypi.org files.pythonhosted.org index.crates.io static.crates.io; do
        timeout "$REACH_S" bash -c ": </dev/tcp/$host/443" 2>/dev/null || die "$host does not answer on port 443, and pip" \
            "and cargo fetch from there what Debian does not have: check the network, or configure a proxy (https_proxy)" \
            "or other registries for pip and cargo; then run this again. Nothing was installed."
    done
}

# install_packages PACKAGE...: fetched first, then installed.
install_packages() {
    apt_get apt-fetch install -y --no-install-recommends --download-only "$@" || {
        apt_errors apt-fetch >&2
        die "apt could not fetch the packages, as told above: check the network and the room in /var/cache/apt, then run this" \
            "again. Nothing was installed."
    }
    apt_get apt-install install -y --no-install-recommends "$@" || {
        log_end "$LOGS/apt-install.log" 25 >&2
        die "apt could not install the packages; the lines above are the end of $LOGS/apt-install.log"
    }
}

# ensure_apt PURPOSE...: the Debian packages of these purposes are installed, Rust among them where it is needed.
ensure_apt() {
    local wanted missing rust
    mapfile -t wanted < <(wanted_packages "$@")
    if ! command -v dpkg-query >/dev/null; then
        ensure_rust
        say "Not a Debian system: install by hand what is missing of: ${wanted[*]}"
        return
    fi
    find_rust || true
    rust=$(rust_packages "$@") || exit
    mapfile -t missing < <(missing_of "${wanted[@]}" && printf '%s' "${rust:+$rust$'\n'}")
    [ ${#missing[@]} -ne 0 ] || return 0
    check_disk "$([[ " $* " == *" test "* ]] && echo $DISK_MB_TEST || echo $DISK_MB_RUN)"
    is_installed "$1" || check_registries
    become_root "${missing[@]}"
    read_sources
    [ -z "$rust" ] || [[ "$rust" != *rustc-web* ]] || check_rust_candidate
    check_install "${missing[@]}"
    install_packages "${missing[@]}"
    ensure_rust
}

# sources_hash PURPOSE: changes when an installation for that purpose would come out different.
sources_hash() {
    {
        printf '%s %s\n' "$ROOT" "$1"
        cat "$ROOT/pyproject.toml" "$ROOT/engine/Cargo.toml" "$ROOT/engine/Cargo.lock" "$ROOT/engine/build.rs"
        find "$ROOT/engine/src" -type f -print0 | sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d ' ' -f 1
}

# is_installed run|test: whether the virtual environment has all that, built from the sources as they are.
is_installed() {
    [ -e "$ROOT/engine/python/engine.abi3.so" ] || return 1
    [ "$(cat "$VENV/stamp-$1" 2>/dev/null)" != "$(sources_hash "$1")" ] || return 0
    [ "$1" = run ] && [ "$(cat "$VENV/stamp-test" 2>/dev/null)" = "$(sources_hash test)" ]
}

# as_released NAME COMMAND...: `logged`, where cargo builds the engine as for a package: one build serves .venv, the wheel and
# the package. The engine is the same wherever the clone and cargo's registry are: their paths are left out. It has a target
# directory of its own, since cargo builds all again when such flags change. One at a time: setuptools puts the modules of
# all into build/lib.*.
as_released() {
    local registry=${CARGO_HOME:-${HOME:-/root}/.cargo}/registry/src
    exec 8>"$BUILD/release.lock"
    flock 8
    CARGO_ENCODED_RUSTFLAGS=--remap-path-prefix=$ROOT/=$'\x1f'--remap-path-prefix=$registry/= CARGO_TARGET_DIR=$BUILD/release \
        logged "$@" 8>&-
    exec 8>&-
}

# ensure_installed run|test: the virtual environment has polyvol (editable), its engine built from these sources.
ensure_installed() {
    local purpose=$1 extras=""
    ! is_installed "$purpose" || return 0
    [ "$purpose" = run ] || extras="[test]"
    if [ "$(cat "$VENV/stamp-root" 2>/dev/null)" != "$ROOT" ]; then
        say "Making the virtual environment .venv"
        logged venv /usr/bin/python3 -m venv --clear --system-site-packages "$VENV"
        logged venv-tools "$VENV/bin/pip" install --disable-pip-version-check \
            'setuptools>=77' 'packaging>=24.2' 'setuptools-rust>=1.12' wheel
        printf '%s' "$ROOT" >"$VENV/stamp-root"
    fi
    say "Building the engine and installing polyvol into .venv (minutes the first time)"
    as_released install "$VENV/bin/pip" install --verbose --disable-pip-version-check --no-build-isolation \
        --editable "$ROOT$extras"
    sources_hash "$purpose" >"$VENV/stamp-$purpose"
}

# set_up run|test [PURPOSE]: everything above, one at a time, and the packages of another purpose. Rust is on PATH then.
set_up() {
    mkdir -p "$BUILD"
    exec 9>"$BUILD/setup.lock"
    flock -n 9 || {
        say "Waiting for another set-up of this checkout to end"
        flock 9
    }
    ensure_apt "$@"
    ensure_installed "$1"
    exec 9>&-
}
