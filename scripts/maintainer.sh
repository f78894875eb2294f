# maintainer.sh: the scripts that dpkg runs for the Debian package, and the question that debconf asks.
#
# How it works   Sourced, after lib.sh. Each script has the functions of activate.sh in it and is complete by itself: dpkg
#                keeps nothing else of a package that was removed until it is purged.
# Errors         prerm ends with an error, and the package stays as it is, while volumes are in use.
# shellcheck shell=bash disable=SC2154 # ROOT comes from lib.sh

# maintainer FILE BODY: one of the scripts.
maintainer() {
    { printf '#!/bin/sh\nset -e\n'; grep -v '^#' "$ROOT/scripts/activate.sh"; printf '%s\n' "$2"; } >"$1"
    chmod 755 "$1"
}

# maintainer_scripts DIR: all of them, in the directory of a package's control files.
# shellcheck disable=SC2016 # for the scripts to expand
maintainer_scripts() {
    local control=$1
    cat >"$control/templates" <<TEXT
Template: polyvol/delete-volumes
Type: boolean
Default: false
Description: Delete all polyvol volumes and snapshots?
 The package polyvol is being purged. /var/lib/polyvol still has its volumes and
 snapshots, that is, data of users.
 .
 If you refuse, they are kept, and polyvol finds them again when it is
 installed.
TEXT
    maintainer "$control/preinst" 'if [ -e /opt/polyvol/installed ]; then
    echo "polyvol: scripts/install has installed polyvol here: run scripts/uninstall first (the volumes stay)" >&2
    exit 1
fi'
    # debconf's module, so that it knows the question when the package is purged, without the templates.
    maintainer "$control/postinst" '. /usr/share/debconf/confmodule
db_stop
if [ "$1" = configure ]; then
    files_came
    if [ -n "$2" ]; then newer_files_came || true; fi
fi'
    maintainer "$control/prerm" 'case $1 in
remove) refuse_if_used; files_go ;;
deconfigure) refuse_if_used ;;
esac'
    maintainer "$control/postrm" 'delete=false
case $1 in
remove) files_went ;;
purge)
    if [ -e /usr/share/debconf/confmodule ]; then
        . /usr/share/debconf/confmodule
        if has_data; then
            db_fset polyvol/delete-volumes seen false || true
            db_input high polyvol/delete-volumes || true
            db_go || true
            if db_get polyvol/delete-volumes; then delete=$RET; fi
        fi
        db_purge || true
        db_stop || true
    fi
    purge_all "$delete"
    files_went
    ;;
esac'
}
