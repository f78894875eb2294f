"""test_removal: dpkg's removal and purge of the package, and scripts/uninstall, with volumes in use.

The package's own scripts, in a package without polyvol's files, are installed by the real dpkg and debconf
into this machine's own root seen through overlays; its programs are those of this checkout.
"""

import os
from pathlib import Path

import pytest

from tests.support import fuse
from tests.support.daemon import BIN
from tests.support.proc import run

ROOT = Path(__file__).resolve().parents[2]

# In a mount namespace of its own: what is written to these directories goes to a tmpfs that nobody else sees.
BEGIN = r"""
set -eu
work=$1 root=$2 bin=$3
mount -t tmpfs none "$work"
for directory in /etc /opt /usr/lib /usr/local /var/lib /var/cache; do
    mkdir -p $directory "$work/upper$directory" "$work/work$directory"
    layers=lowerdir=$directory,upperdir=$work/upper$directory,workdir=$work/work$directory
    mount -t overlay overlay -o "$layers" $directory
done
mount -t tmpfs none /run  # so that this machine's systemd is not told of what it cannot see
export DEBIAN_FRONTEND=noninteractive
stage=$work/stage
mkdir -p $stage/DEBIAN $stage/opt/polyvol/bin $stage/usr/lib/sysusers.d $stage/usr/lib/tmpfiles.d
printf '#!/bin/sh\nexec %s/polyvol "$@"\n' "$bin" >$stage/opt/polyvol/bin/polyvol
chmod 755 $stage/opt/polyvol/bin/polyvol
cp "$root/systemd/polyvol.sysusers" $stage/usr/lib/sysusers.d/polyvol.conf
cp "$root/systemd/polyvol.tmpfiles" $stage/usr/lib/tmpfiles.d/polyvol.conf
printf 'Package: polyvol\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n' \
    >$stage/DEBIAN/control
for script in preinst postinst prerm postrm; do
    sed '/^#ACTIVATE#$/r '"$root/scripts/activate.sh" "$root/debian/polyvol.$script.in" >$stage/DEBIAN/$script
    chmod 755 $stage/DEBIAN/$script
done
sed s/^_Description/Description/ "$root/debian/polyvol.templates" >$stage/DEBIAN/templates
dpkg-deb --root-owner-group --build $stage $work/polyvol.deb
install_it() { dpkg -i --force-depends $work/polyvol.deb >/dev/null; }
installed() { dpkg-query -W -f '${db:Status-Status}\n' polyvol; }
refused() {
    if "$@" >$work/said 2>&1; then cat $work/said; echo "NOT REFUSED: $*"; exit 1; fi
    cat $work/said
}
install_it
"""

IN_USE = r"""
state=/var/lib/polyvol
chown root: $state  # polyvold runs as root here
polyvol() { "$bin/polyvol" "$@" --state-dir $state; }
"$bin/polyvold" --state-dir $state >$work/log 2>&1 & daemon=$!
end() {
    set +e
    umount /mnt 2>/dev/null
    "$bin/polyvol" detach v --force >/dev/null 2>&1
    kill $daemon
    wait $daemon
}
trap end EXIT
tries=0
until polyvol status >/dev/null 2>&1; do tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1; done
polyvol volume create v --size 16M
device=$(readlink -f "$(polyvol attach v --fuse)")
mkfs.ext4 -q $device
mount $device /mnt
echo "-- mounted"; refused dpkg --remove polyvol
[ "$(installed)" = installed ] && polyvol status >/dev/null
refused dpkg --purge polyvol
prerm=/var/lib/dpkg/info/polyvol.prerm
refused $prerm deconfigure in-favour other 1
$prerm upgrade 2
install_it
echo "-- mounted, and polyvold is asked for nothing"
POLYVOL_ATTACH_ROOT=/ refused $bin/polyvol in-use --state-dir $work/nothing
umount /mnt
"$bin/polyvol" detach v
/usr/bin/python3 -c "
import nbd, time
h = nbd.NBD(); h.connect_uri('nbd+unix:///v?socket=$state/nbd.sock'); print('up', flush=True); time.sleep(90)
" >$work/client & client=$!
until grep -q up $work/client; do sleep 0.1; done
echo "-- a client"; refused dpkg --remove polyvol
[ "$(installed)" = installed ]
echo "-- forced"; POLYVOL_FORCE_REMOVE=1 dpkg --remove polyvol 2>&1
[ "$(installed)" = config-files ]
kill $client
install_it
echo "-- free"; dpkg --remove polyvol 2>&1
[ "$(installed)" = config-files ] && [ -e $state/catalog.db ]
echo "all done"
"""

PURGE = r"""
state=/var/lib/polyvol
touch $state/catalog.db
dpkg --remove polyvol >/dev/null
echo "-- nobody answers"; dpkg --purge polyvol 2>&1
[ -e $state/catalog.db ] && getent passwd polyvol >/dev/null
install_it
echo "-- yes"; echo 'polyvol polyvol/delete-volumes boolean true' | debconf-set-selections
dpkg --purge polyvol 2>&1
[ ! -e $state ] && ! getent passwd polyvol
install_it
touch $state/catalog.db
echo "-- the answer of before is not one"; dpkg --purge polyvol 2>&1
[ -e $state/catalog.db ]
rm $state/catalog.db
install_it
echo "-- no data"; dpkg --purge polyvol 2>&1
[ ! -e $state ] && ! getent passwd polyvol
echo "all done"
"""

UNINSTALL = r"""
state=/var/lib/polyvol
touch $state/catalog.db
echo /usr/lib/sysusers.d/polyvol.conf >/opt/polyvol/installed
printf '#!/bin/sh\necho "v (/dev/x) is mounted at /y; end that"; exit 1\n' >/opt/polyvol/bin/polyvol
echo "-- in use"; refused "$root/scripts/uninstall"
[ -e /opt/polyvol/installed ]
printf '#!/bin/sh\nexit 0\n' >/opt/polyvol/bin/polyvol
refused "$root/scripts/uninstall" --delete-volumes
echo "-- purge"; "$root/scripts/uninstall" --purge 2>&1
[ ! -e /opt/polyvol ] && [ -e $state/catalog.db ] && [ ! -e /etc/polyvol ]
"$root/scripts/uninstall" --purge --delete-volumes 2>&1
[ ! -e $state ]
echo "all done"
"""


def parts(script: str, directory: Path) -> dict[str, str]:
    """What a script has said, by the headings that it prints."""
    fuse.needed()
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here, and would be told to supervise what is attached")
    shell = ["unshare", "--mount", "bash", "-c", BEGIN + script, "removal"]
    result = run(*shell, directory, ROOT, BIN, env={**os.environ, "LC_ALL": "C"}, timeout_s=110)
    if "overlay" in result.err and "mount" in result.err:
        pytest.skip(f"no overlay available here: {result.err}")
    assert result.rc == 0, result.out + result.err
    assert result.out.splitlines()[-1] == "all done", result.out + result.err
    sections = result.out.removesuffix("all done\n").split("\n-- ")
    return {head: said for head, _, said in (section.partition("\n") for section in sections)}


@pytest.mark.slow
def test_a_package_with_volumes_in_use_is_not_removed(tmp_path: Path) -> None:
    said = parts(IN_USE, tmp_path)
    assert "is mounted at /mnt; end that, then `polyvol detach v`" in said["mounted"]
    assert "polyvol: not removed" in said["mounted"]
    assert "is mounted at /mnt" in said["mounted, and polyvold is asked for nothing"]
    assert "1 NBD connection is open to v" in said["a client"]
    assert "removed all the same" in said["forced"]
    assert "not removed" not in said["free"]


@pytest.mark.slow
def test_a_purge_deletes_volumes_only_if_somebody_has_said_so(tmp_path: Path) -> None:
    said = parts(PURGE, tmp_path)
    assert "the volumes in /var/lib/polyvol are kept" in said["nobody answers"]
    assert "kept" not in said["yes"]
    assert "are kept" in said["the answer of before is not one"]
    assert "kept" not in said["no data"]


@pytest.mark.slow
def test_uninstall_refuses_and_keeps_in_the_same_way(tmp_path: Path) -> None:
    said = parts(UNINSTALL, tmp_path)
    assert "v (/dev/x) is mounted at /y" in said["in use"]
    assert "polyvol: not removed" in said["in use"]
    assert "the volumes in /var/lib/polyvol are kept" in said["purge"]
