# package.sh: put together what an installation consists of, for scripts/install and debian/rules.
#
# How it works   Sourced, after lib.sh. `stage_tree` fills a directory with everything under the paths that it will
#                have: the home (/opt/polyvol, or the package's /usr/lib/polyvol), a virtual environment of Debian's
#                python3 that sees Debian's own packages, with polyvol's wheel and what the wheel needs; links to the
#                two programs; units, udev rules, the user's and the state directory's definitions; the configuration
#                file. Nothing is fetched at installation. What is in the clone names /opt/polyvol; that is replaced.
# Owner          build/package/: the wheel, the engine's build, and the fetched packages, kept by what they depend on.
# shellcheck shell=bash disable=SC2154 # ROOT, VENV and BUILD come from lib.sh

OPT=/opt/polyvol
PACKAGE=$BUILD/package
# Those of our dependencies that Debian has new enough: with C in them and no wheels, or tied to the system's udev.
FROM_DEBIAN="crcmod pyudev"

# package_version: the version in pyproject.toml.
package_version() { sed -n '/^\[project\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$ROOT/pyproject.toml"; }

# vendored: our dependencies that Debian does not have, as requirements, one a line.
vendored() {
    "$VENV/bin/python" - "$ROOT/pyproject.toml" "$FROM_DEBIAN" <<'PYTHON'
import re, sys, tomllib
with open(sys.argv[1], "rb") as file:
    for wanted in tomllib.load(file)["project"]["dependencies"]:
        if re.match(r"[\w.-]+", wanted)[0] not in sys.argv[2].split():
            print(wanted)
PYTHON
}

# fetch_vendored: those packages with what they need in turn, unpacked; prints the directory.
fetch_vendored() {
    local wanted hash into
    wanted=$(vendored)
    hash=$({ printf '%s\n' "$wanted"; /usr/bin/python3 --version; uname -m; } | sha256sum | cut -c 1-16)
    into=$PACKAGE/vendored-$hash
    if [ ! -d "$into" ]; then
        rm -rf "$into.new"
        # shellcheck disable=SC2086 # one word for each requirement
        logged package-fetch "$VENV/bin/pip" install --disable-pip-version-check --no-compile \
            --only-binary :all: --target "$into.new" $wanted
        rm -rf "$into.new/bin"
        mv "$into.new" "$into"
    fi
    printf '%s\n' "$into"
}

# build_wheel: polyvol's wheel; prints its path.
build_wheel() {
    rm -rf "$PACKAGE/wheel"
    as_released package-wheel "$VENV/bin/pip" wheel --verbose --disable-pip-version-check --no-build-isolation --no-deps \
        --wheel-dir "$PACKAGE/wheel" "$ROOT"
    printf '%s\n' "$PACKAGE"/wheel/*.whl
}

# launcher HOME MODULE: a program that runs MODULE's main, untouched by the caller's PYTHON* settings.
launcher() {
    printf '#!%s/bin/python3 -I\n"""Installed by polyvol."""\n\nimport sys\n\n' "$1"
    printf 'from polyvol.daemon.%s import main\n\nsys.exit(main())\n' "$2"
}

# put MODE FILE TARGET HOME: install a file in which another home than /opt/polyvol may have to be named.
put() { install -m "$1" "$2" "$3" && sed -i "s|$OPT|$4|g" "$3/${2##*/}"; }

# stage_environment DIR HOME: HOME below DIR, not compiled.
stage_environment() {
    local home=$2 opt=$1$2 site vendored version file
    version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    site=$opt/lib/python$version/site-packages
    vendored=$(fetch_vendored)
    build_wheel >/dev/null
    mkdir -p "$opt/bin" "${site%/*}"
    cp -a "$vendored" "$site"
    logged package-unpack "$VENV/bin/pip" install --disable-pip-version-check --no-deps --no-compile \
        --target "$site" --no-index --find-links "$PACKAGE/wheel" "polyvol==$(package_version)"
    rm -rf "${site:?}/bin"
    # Nor do the records of these programs stay: they have the path of the Python that unpacked them.
    sed -i '\|^\.\./\.\./bin/|d' "$site"/*.dist-info/RECORD
    ln -s /usr/bin/python3 "$opt/bin/python3"
    printf 'home = /usr/bin\ninclude-system-site-packages = true\nversion = %s\n' "$version" >"$opt/pyvenv.cfg"
    launcher "$home" main >"$opt/bin/polyvold"
    launcher "$home" client.cli.main >"$opt/bin/polyvol"
    chmod 755 "$opt/bin/polyvold" "$opt/bin/polyvol"
    install -d "$opt/hooks"
    for file in "$ROOT"/scripts/hooks/*; do put 755 "$file" "$opt/hooks" "$home"; done
    find "$site" -name '*.so' -exec strip --strip-unneeded {} +
}

# compile_tree DIR HOME: by hash, unchecked: nothing is written there later, whichever user runs it and whatever the files' times are.
compile_tree() {
    logged package-compile /usr/bin/python3 -m compileall -q --invalidation-mode unchecked-hash -s "$1" "$1$2/lib"
}

# stage_tree DIR HOME LIB BIN: everything below DIR; units and rules under LIB (/usr/lib), links in BIN (/usr/bin).
stage_tree() {
    local into=$1 home=$2 lib=$1$3 bin=$1$4 file
    stage_environment "$into" "$home"
    install -d "$bin" "$lib/systemd/system" "$lib/sysusers.d" "$lib/tmpfiles.d" "$lib/udev/rules.d" \
        "$into/etc/polyvol"
    ln -s "$home/bin/polyvol" "$home/bin/polyvold" "$bin"
    for file in "$ROOT"/systemd/*; do
        case $file in
        *.service | *.socket | *.timer | *.target) put 644 "$file" "$lib/systemd/system" "$home" ;;
        *.rules) install -m 644 "$file" "$lib/udev/rules.d" ;;
        *.sysusers) install -m 644 "$file" "$lib/sysusers.d/polyvol.conf" ;;
        *.tmpfiles) install -m 644 "$file" "$lib/tmpfiles.d/polyvol.conf" ;;
        *.toml) install -m 644 "$file" "$into/etc/polyvol" ;;
        *) die "scripts/package.sh does not know where ${file#"$ROOT"/} goes: tell it" ;;
        esac
    done
    chmod -R go-w "$into"
}
