# activate.sh: what has to be told to a machine when polyvol's files have come or are about to go.
#
# How it works   Plain sh. Part of scripts/install and scripts/uninstall (sourced) and of the Debian package's
#                scripts (copied into each). Only a system that systemd runs is told anything; a chroot is not.
# shellcheck shell=sh

UNITS="polyvold.service polyvold.socket polyvold-control.socket polyvol-snapshot@*.timer polyvol-snapshot@*.service
polyvol-scrub@*.timer polyvol-scrub@*.service polyvol-attach@*.service"

runs_systemd() { [ -d /run/systemd/system ]; }

# reload_udev: it reads its rules again, where it runs; in a container it does not.
reload_udev() { [ ! -S /run/udev/control ] || udevadm control --reload || true; }

# files_came: the user and the state directory are made, systemd and udev read what is new.
files_came() {
    systemd-sysusers polyvol.conf
    systemd-tmpfiles --create polyvol.conf
    runs_systemd || return 0
    systemctl daemon-reload
    reload_udev
}

# newer_files_came: a polyvold that runs becomes the new one; its clients wait in the sockets.
newer_files_came() {
    runs_systemd || return 0
    systemctl try-restart polyvold.service
}

# refuse_if_used: exits if somebody would lose data when polyvol is removed, and says who and what to do.
refuse_if_used() {
    [ -x /opt/polyvol/bin/polyvol ] || return 0
    if [ "${POLYVOL_FORCE_REMOVE:-}" = 1 ]; then
        /opt/polyvol/bin/polyvol in-use --state-dir /var/lib/polyvol >&2 || echo "polyvol: removed all the same" >&2
        return 0
    fi
    /opt/polyvol/bin/polyvol in-use --state-dir /var/lib/polyvol >&2 && return 0
    echo "polyvol: not removed: the above is in use, or cannot be told. Do what is said there and try again; with" \
        "POLYVOL_FORCE_REMOVE=1 in the environment it is removed all the same, and what was not written is lost" >&2
    exit 1
}

# files_go: nothing of ours runs any more. What is attached is detached first, as its units say.
files_go() {
    runs_systemd || return 0
    # shellcheck disable=SC2086 # one word for each unit; the patterns are for systemd
    (set -f && systemctl stop $UNITS) || true
}

# files_went: systemd and udev forget them.
files_went() {
    runs_systemd || return 0
    systemctl daemon-reload || true
    reload_udev
}

# has_data: whether the state directory has anything but empty directories and sockets in it.
has_data() { [ -n "$(find /var/lib/polyvol -mindepth 1 ! -type d ! -type s -print -quit 2>/dev/null)" ]; }

# purge_settings: the settings, and what `systemctl enable` and `edit` have made.
purge_settings() {
    rm -rf /etc/polyvol
    find /etc/systemd/system -type l -lname '*/polyvol*' -delete 2>/dev/null || true
    find /etc/systemd/system -maxdepth 1 -name 'polyvol*.d' -exec rm -rf {} + 2>/dev/null || true
    rm -f /var/lib/systemd/timers/stamp-polyvol-*
}

# purge_data: the volumes, and the user, whose they are.
purge_data() {
    rm -rf /var/lib/polyvol
    if getent passwd polyvol >/dev/null; then userdel polyvol || true; fi
    if getent group polyvol >/dev/null; then groupdel polyvol || true; fi
}

# purge_all DELETE: the settings; the volumes too if DELETE is true, or if there are none.
purge_all() {
    purge_settings
    if [ "$1" = true ] || ! has_data; then
        purge_data
    else
        echo "polyvol: the volumes in /var/lib/polyvol are kept, with the user polyvol; to delete them:" \
            "rm -r /var/lib/polyvol; userdel polyvol" >&2
    fi
}
