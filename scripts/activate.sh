# activate.sh: what has to be told to a machine when polyvol's files have come or are about to go.
#
# How it works   Plain sh. Part of scripts/install and scripts/uninstall (sourced) and of the Debian package's
#                scripts (copied into each). Only a system that systemd runs is told anything; a chroot is not.
# shellcheck shell=sh

UNITS="polyvold.service polyvold.socket polyvold-control.socket polyvol-snapshot@*.timer polyvol-snapshot@*.service
polyvol-scrub@*.timer polyvol-scrub@*.service polyvol-attach@*.service"

runs_systemd() { [ -d /run/systemd/system ]; }

# files_came: the user and the state directory are made, systemd and udev read what is new.
files_came() {
    systemd-sysusers polyvol.conf
    systemd-tmpfiles --create polyvol.conf
    runs_systemd || return 0
    systemctl daemon-reload
    udevadm control --reload || true
}

# newer_files_came: a polyvold that runs becomes the new one; its clients wait in the sockets.
newer_files_came() {
    runs_systemd || return 0
    systemctl try-restart polyvold.service
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
    udevadm control --reload || true
}

# purge_all: the volumes, the settings, the user, and what `systemctl enable` and `edit` have made.
purge_all() {
    rm -rf /var/lib/polyvol /etc/polyvol
    find /etc/systemd/system -type l -lname '*/polyvol*' -delete 2>/dev/null || true
    find /etc/systemd/system -maxdepth 1 -name 'polyvol*.d' -exec rm -rf {} + 2>/dev/null || true
    rm -f /var/lib/systemd/timers/stamp-polyvol-*
    if getent passwd polyvol >/dev/null; then userdel polyvol || true; fi
    if getent group polyvol >/dev/null; then groupdel polyvol || true; fi
}
