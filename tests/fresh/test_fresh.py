"""A fresh Debian 12 and 13: the first command, the tour, a snapshot read back, the wheel, the package.

How it works      Four machines, one after the other: each release as root, and as a user with sudo. Each has
                  minbase, git and Debian's security suite, and nothing else. Debian 12 builds the wheel, and
                  both releases install it. A package is compared with that of the other user. With
                  POLYVOL_FRESH_SUITE=1 they run `scripts/test --quick` too.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.fresh.machine import CACHE, RELEASES, SOMEBODY, Machine

SUITE = "POLYVOL_FRESH_SUITE"
FIRST_S, BUILD_S, SUITE_S = 3000.0, 2400.0, 5400.0
MACHINES = tuple(product(RELEASES, ("root", SOMEBODY)))
NUMBERS = {"bookworm": 12, "trixie": 13}
pytestmark = [pytest.mark.fresh, pytest.mark.few, pytest.mark.slow, pytest.mark.timeout(4000)]

# scripts/run until it is ready, then $1 while it runs; ended by Ctrl-C's signal.
WHILE_IT_RUNS = r"""
rm -f run.log
scripts/run >run.log 2>&1 & daemon=$!
until grep -qsx ready run.log; do
    kill -0 $daemon 2>/dev/null || { cat run.log; exit 1; }
    sleep 0.5
done
set -eu
%s
kill -TERM $daemon
wait $daemon
cat run.log
"""
LOOK = r"""
scripts/polyvol status
scripts/polyvol volume list
scripts/polyvol volume show demo --partitions
nbdinfo "nbd+unix:///demo?socket=$PWD/var/nbd.sock" | grep export-size
"""
# The README's tour, as root with fuse3, also where the daemon is a user's. What it mounts and attaches is
# removed however it ends.
TOUR = r"""
loop=
trap 'umount /mnt; losetup --detach "$loop"; umount /tmp/demo.disk' EXIT
touch /tmp/demo.disk
nbdfuse /tmp/demo.disk "nbd+unix:///demo?socket=$PWD/var/nbd.sock" & fuse=$!
until [ -s /tmp/demo.disk ]; do kill -0 $fuse; sleep 0.2; done
loop=$(losetup --find --show /tmp/demo.disk)
mkfs.ext4 -q "$loop"
mount "$loop" /mnt
cp -r docs /mnt
sync
scripts/polyvol snapshot create demo --name first
rm -r /mnt/docs
scripts/polyvol snapshot list demo
nbdcopy "nbd+unix:///demo@first?socket=$PWD/var/nbd.sock" /tmp/first.img
debugfs -R 'ls /docs' /tmp/first.img 2>/dev/null
scripts/polyvol snapshot delete demo@first
umount /mnt
losetup --detach "$loop"
umount /tmp/demo.disk
trap - EXIT
wait $fuse
"""
AS_ROOT = r"""
code=0
%s bash -eu <<'END' || code=$?
%s
END
[ $code -eq 0 ] || { kill -TERM $daemon; wait $daemon; exit $code; }
"""
# The same without root's rights: what is written is read back from the snapshot by NBD alone.
READ_BACK = r"""
live="nbd+unix:///demo?socket=$PWD/var/nbd.sock" old="nbd+unix:///demo@first?socket=$PWD/var/nbd.sock"
head -c 1048576 /dev/urandom >first.img
truncate -s 1G first.img
nbdcopy first.img "$live"
scripts/polyvol snapshot create demo --name first
head -c 1048576 /dev/urandom >second.img
truncate -s 1G second.img
nbdcopy second.img "$live"
nbdcopy "$old" read.img
cmp first.img read.img
nbdcopy "$live" read.img
cmp second.img read.img
scripts/polyvol snapshot delete demo@first
rm first.img second.img read.img
echo the snapshot was read back
"""
INSTALL = "apt-get install -qq -y --no-install-recommends %s >/dev/null 2>&1"
AGAIN = "[ $SECONDS -lt 60 ] && echo quick"
WHEEL_RUNS = r"""
set -eu
rm -rf /tmp/venv /tmp/pv
python3 -m venv %s /tmp/venv
/tmp/venv/bin/pip install -q /tmp/%s >pip.log 2>&1 || { cat pip.log; exit 1; }
/tmp/venv/bin/polyvold --state-dir /tmp/pv >wheel.log 2>&1 & daemon=$!
until /tmp/venv/bin/polyvol status --state-dir /tmp/pv; do
    kill -0 $daemon 2>/dev/null || { cat wheel.log; exit 1; }
    sleep 0.5
done >/dev/null 2>&1
/tmp/venv/bin/polyvol volume create v --size 16M --state-dir /tmp/pv
/tmp/venv/bin/polyvol snapshot create v --name s --state-dir /tmp/pv
nbdinfo "nbd+unix:///v@s?socket=/tmp/pv/nbd.sock" | grep export-size
/tmp/venv/bin/python -c 'import sys, polyvol.engine; print(sys.version_info[:2], polyvol.engine.__file__)'
PATH=/nowhere /tmp/venv/bin/polyvold --frontend nbdkit --state-dir /tmp/other 2>&1 || true
code=0
/tmp/venv/bin/polyvol backup v@s -o /tmp/backup.img --state-dir /tmp/pv || code=$?
kill -TERM $daemon
wait $daemon
exit $code
"""


@pytest.fixture(scope="module", params=MACHINES, ids="-".join)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The machines, one after the other, each with Debian's security suite."""
    with Machine(*request.param) as machine:
        machine.add_security()
        yield machine


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """The machine, if the first command has come to `ready` on it."""
    if not machine.ready:
        pytest.skip(f"the first command did not come to ready on {machine.release}")
    return machine


def kept(machine: Machine, kind: str) -> Path:
    """Where what these sources give is kept for the other machines."""
    tree = machine.ok("git rev-parse 'HEAD^{tree}'").strip()
    directory = CACHE / f"{kind}-{tree[:12]}"
    directory.mkdir(exist_ok=True)
    return directory


def test_the_first_command_comes_to_ready(machine: Machine) -> None:
    said = machine.ok(WHILE_IT_RUNS % LOOK, timeout_s=FIRST_S)
    assert re.search(r"^Installing \d+ Debian packages \(\d+ MB to fetch\): .*rustc-web", said, re.MULTILINE)
    assert re.search(r"^  apt-install: \d+ s, (fetching|unpacking and .*), \d+ %$", said, re.MULTILINE)
    assert re.search(r"^  install: \d+ s, Building \d+ of \d+$", said, re.MULTILINE)
    assert "export-size: 1073741824" in said
    assert machine.ok("stat -c %U .venv build var") == f"{machine.user}\n" * 3
    machine.ready = True


def test_the_second_time_nothing_is_set_up(ready: Machine) -> None:
    said = ready.ok(WHILE_IT_RUNS % AGAIN, timeout_s=120)
    assert "quick" in said
    assert "Installing" not in said
    assert "Building" not in said


def test_the_tour_of_the_readme(ready: Machine) -> None:
    ready.ok(INSTALL % "fuse3 e2fsprogs", user="root", timeout_s=600)
    tour = AS_ROOT % ("" if ready.user == "root" else "sudo", TOUR)
    said = ready.ok(WHILE_IT_RUNS % tour, timeout_s=600)
    assert "ARCHITECTURE.md" in said


def test_a_snapshot_is_read_back(ready: Machine) -> None:
    said = ready.ok(WHILE_IT_RUNS % READ_BACK, timeout_s=600)
    assert "the snapshot was read back" in said


def test_the_wheel_of_debian_12_runs_on_both_without_rust(ready: Machine) -> None:
    wheels = kept(ready, "wheel")
    if ready.release == "bookworm":
        path = ready.ok("scripts/build-wheel", timeout_s=BUILD_S).splitlines()[-1]
        shutil.copy(ready.tree / path[1:], wheels)
    elif not any(wheels.iterdir()):
        pytest.skip("Debian 12 has not built the wheel of these sources")
    (wheel,) = wheels.iterdir()
    assert re.fullmatch(r"polyvol-[0-9.]+-cp311-abi3-manylinux_2_[0-9]+_x86_64\.whl", wheel.name)
    shutil.copy(wheel, ready.tree / "tmp")
    ready.ok("mv /usr/bin/cargo /usr/bin/rustc /root", user="root")
    try:
        alone = ready.run(WHEEL_RUNS % ("", wheel.name), timeout_s=600)
        with_debians = ready.ok(WHEEL_RUNS % ("--system-site-packages", wheel.name), timeout_s=600)
    finally:
        ready.ok("mv /root/cargo /root/rustc /usr/bin", user="root")
    assert "/tmp/venv/" in alone.out
    assert "export-size: 16777216" in alone.out
    assert "install nbdkit and nbdkit-plugin-python" in alone.out
    assert alone.rc == 1
    assert "python3-libnbd" in alone.err
    assert "--system-site-packages" in alone.err
    assert "export-size: 16777216" in with_debians


def test_the_package_is_the_same_wherever_it_is_built(ready: Machine) -> None:
    path = Path(ready.ok("scripts/build-deb", timeout_s=BUILD_S).splitlines()[-1])
    packages = kept(ready, "deb")
    shutil.copy(ready.tree / str(path)[1:], packages / f"{ready.user}_{path.name}")
    same = list(packages.glob(f"*_{path.name}"))
    digests = {hashlib.sha256(package.read_bytes()).hexdigest() for package in same}
    assert len(digests) == 1, f"look at what differs in {same}"


def test_the_package_has_no_complaint_of_lintian_and_runs(ready: Machine) -> None:
    path = ready.ok("scripts/build-deb --lintian", timeout_s=BUILD_S).splitlines()[-1]
    assert re.search(rf"/polyvol_[0-9.]+-[0-9]+~deb{NUMBERS[ready.release]}u1_amd64\.deb$", path)
    listed = ready.ok(f"dpkg-deb -c {path}")
    assert "__pycache__" not in listed
    assert "/opt/" not in listed
    for wanted in ("docs/formats.md", "README.Debian", "changelog.Debian.gz", "man8/polyvold.8.gz"):
        assert wanted in listed
    ready.ok(INSTALL % path, user="root", timeout_s=600)
    said = ready.ok(
        "set -eu\ncd /tmp\npolyvold --state-dir /tmp/packaged >packaged.log 2>&1 & daemon=$!\n"
        "until polyvol status --state-dir /tmp/packaged; do kill -0 $daemon; sleep 0.5; done 2>/dev/null\n"
        "kill $daemon; wait $daemon\nstat -c %U:%a /var/lib/polyvol; polyvol in-use\n"
        "apt-get purge -qq -y polyvol >/dev/null 2>&1; ls -d /usr/lib/polyvol /var/lib/polyvol 2>&1 || true",
        user="root",
    )
    assert "polyvol:750" in said
    assert said.count("No such file") == 2


@pytest.mark.timeout(SUITE_S + 600)
def test_the_everyday_suite(ready: Machine) -> None:
    if os.environ.get(SUITE) != "1":
        pytest.skip(f"an hour for both releases: set {SUITE}=1")
    result = ready.run("scripts/test --quick", timeout_s=SUITE_S)
    (CACHE / f"suite-{ready.release}-{ready.user}.log").write_text(result.out + result.err)
    assert result.rc == 0, result.out[-8000:] + result.err[-4000:]
