"""scripts/install and scripts/uninstall, on this machine's own root seen through overlays."""

from pathlib import Path

import pytest

from tests.host.image import ROOT
from tests.support.proc import run

pytestmark = [pytest.mark.host, pytest.mark.few, pytest.mark.slow, pytest.mark.timeout(600)]

# In a mount namespace of its own: what is written to these directories goes to a tmpfs that nobody else sees.
SCRIPT = r"""
set -eu
mount -t tmpfs none "$1"
for directory in /etc /opt /usr/local /var/lib; do
    mkdir -p $directory "$1/upper$directory" "$1/work$directory"
    layers=lowerdir=$directory,upperdir=$1/upper$directory,workdir=$1/work$directory
    mount -t overlay overlay -o "$layers" $directory
done
mount -t tmpfs none /run  # so that this machine's systemd is not told of what it cannot see
cd "$2"
scripts/install
ls -l /usr/local/bin/polyvol /usr/local/lib/systemd/system/polyvold.service /etc/polyvol/polyvold.toml
stat -c 'state %U %a' /var/lib/polyvol
cd /
state=$(mktemp -d /tmp/pv-XXXXXX)
polyvold --state-dir "$state" & daemon=$!
tries=0
until polyvol status --state-dir "$state" >/dev/null 2>&1; do
    tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1
done
polyvol status --state-dir "$state"
kill $daemon && wait $daemon
rm -r "$state"
cd "$2"
echo 'processors = 2' >>/etc/polyvol/polyvold.toml
touch /var/lib/polyvol/kept
scripts/install
grep -qx 'processors = 2' /etc/polyvol/polyvold.toml
scripts/uninstall
[ ! -e /opt/polyvol ] && [ ! -e /usr/local/bin/polyvol ] && [ -e /var/lib/polyvol/kept ]
scripts/uninstall --purge
[ ! -e /etc/polyvol ] && [ -e /var/lib/polyvol/kept ]
scripts/uninstall --purge --delete-volumes
[ ! -e /var/lib/polyvol ]
! getent passwd polyvol
find /etc /opt /usr/local -name '*polyvol*'
echo all done
"""


def test_install_puts_it_in_place_and_uninstall_takes_it_away(tmp_path: Path) -> None:
    shell = ["unshare", "--mount", "bash", "-c", SCRIPT, "install"]
    result = run(*shell, tmp_path, ROOT, timeout_s=550)
    assert result.rc == 0, result.out + result.err
    assert "state polyvol 750" in result.out
    assert "front-end:   native" in result.out
    assert result.out.splitlines()[-1] == "all done"
