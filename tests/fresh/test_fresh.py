"""A fresh Debian 12 and 13: the first command, the tour, a snapshot read back, the wheel, the package.

Each machine has minbase and git and nothing else. With POLYVOL_FRESH_SUITE=1 `scripts/test --quick` is run on
them too.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fresh.machine import RELEASES, ROOT, Machine

SUITE = "POLYVOL_FRESH_SUITE"
FIRST_S, BUILD_S, SUITE_S = 3000.0, 2400.0, 5400.0
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
# The README's tour, as root with fuse3. What it mounts and attaches is taken away however it ends.
TOUR = r"""
loop=
trap 'umount /mnt; losetup --detach "$loop"; umount /tmp/demo.disk; kill -TERM $daemon; wait $daemon' EXIT
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
code=0
/tmp/venv/bin/polyvol backup v@s -o /tmp/backup.img --state-dir /tmp/pv || code=$?
kill -TERM $daemon
wait $daemon
exit $code
"""


class Fresh:
    """The machines of this session, by release, and the wheel that the first one has built."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._machines: dict[tuple[str, str], Machine] = {}
        self.ready: set[str] = set()

    def machine(self, release: str, user: str = "root") -> Machine:
        """A release's machine, of root or of a user with sudo."""
        if (release, user) not in self._machines:
            self._machines[release, user] = self._stack.enter_context(Machine(release, user))
        return self._machines[release, user]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Fresh]:
    """The machines, made when they are first asked for."""
    with ExitStack() as stack:
        yield Fresh(stack)


def needs_ready(fresh: Fresh, release: str) -> Machine:
    """The machine on which the first command has come to `ready`."""
    if release not in fresh.ready:
        pytest.skip(f"the first command did not come to ready on {release}")
    return fresh.machine(release)


def test_where_rust_is_too_old_the_missing_suite_is_named_before_anything_is_installed(fresh: Fresh) -> None:
    machine = fresh.machine("bookworm")
    before = machine.ok("dpkg-query -W")
    refused = machine.run("scripts/run", timeout_s=300)
    assert refused.rc == 1
    assert "bookworm-security" in refused.err.splitlines()[-1]
    assert "Traceback" not in refused.err
    assert machine.ok("dpkg-query -W") == before


@pytest.mark.parametrize("release", RELEASES)
def test_the_first_command_comes_to_ready(fresh: Fresh, release: str) -> None:
    machine = fresh.machine(release)
    machine.add_security()
    said = machine.ok(WHILE_IT_RUNS % LOOK, timeout_s=FIRST_S)
    assert re.search(r"^Installing \d+ Debian packages \(\d+ MB to fetch\): .*rustc-web", said, re.MULTILINE)
    assert re.search(r"^  apt-install: \d+ s, fetching|unpacking and setting up, \d+ %$", said, re.MULTILINE)
    assert re.search(r"^  install: \d+ s, Building \d+ of \d+$", said, re.MULTILINE)
    assert "export-size: 1073741824" in said
    fresh.ready.add(release)


@pytest.mark.parametrize("release", RELEASES)
def test_the_second_time_nothing_is_set_up(fresh: Fresh, release: str) -> None:
    said = needs_ready(fresh, release).ok(WHILE_IT_RUNS % AGAIN, timeout_s=120)
    assert "quick" in said
    assert "Installing" not in said
    assert "Building" not in said


@pytest.mark.parametrize("release", RELEASES)
def test_the_tour_of_the_readme(fresh: Fresh, release: str) -> None:
    machine = needs_ready(fresh, release)
    machine.ok(INSTALL % "fuse3 e2fsprogs", timeout_s=600)
    said = machine.ok(WHILE_IT_RUNS % TOUR, timeout_s=600)
    assert "ARCHITECTURE.md" in said


@pytest.mark.parametrize("release", RELEASES)
def test_a_snapshot_is_read_back(fresh: Fresh, release: str) -> None:
    said = needs_ready(fresh, release).ok(WHILE_IT_RUNS % READ_BACK, timeout_s=600)
    assert "the snapshot was read back" in said


@pytest.mark.parametrize("release", RELEASES)
def test_the_package_has_no_complaint_of_lintian_and_runs(fresh: Fresh, release: str) -> None:
    machine = needs_ready(fresh, release)
    path = machine.ok("scripts/build-deb --lintian", timeout_s=BUILD_S).splitlines()[-1]
    number = {"bookworm": 12, "trixie": 13}[release]
    assert re.search(rf"/polyvol_[0-9.]+-[0-9]+~deb{number}u1_amd64\.deb$", path)
    listed = machine.ok(f"dpkg-deb -c {path}")
    assert "__pycache__" not in listed
    assert "/opt/" not in listed
    for wanted in ("docs/formats.md", "README.Debian", "changelog.Debian.gz", "man8/polyvold.8.gz"):
        assert wanted in listed
    machine.ok(INSTALL % path, timeout_s=600)
    said = machine.ok(
        "set -eu\npolyvold --state-dir /tmp/packaged >packaged.log 2>&1 & daemon=$!\n"
        "until polyvol status --state-dir /tmp/packaged; do kill -0 $daemon; sleep 0.5; done 2>/dev/null\n"
        "kill $daemon; wait $daemon\nstat -c %U:%a /var/lib/polyvol; polyvol in-use\n"
        "apt-get purge -qq -y polyvol >/dev/null 2>&1; ls -d /usr/lib/polyvol /var/lib/polyvol 2>&1 || true"
    )
    assert "polyvol:750" in said
    assert said.count("No such file") == 2


def test_the_wheel_of_debian_12_runs_on_both_without_rust(fresh: Fresh, tmp_path: Path) -> None:
    builder = needs_ready(fresh, "bookworm")
    path = Path(builder.ok("scripts/build-wheel", timeout_s=BUILD_S).splitlines()[-1])
    assert re.fullmatch(r"polyvol-[0-9.]+-cp311-abi3-manylinux_2_[0-9]+_x86_64\.whl", path.name)
    shutil.copy(builder.tree / str(path)[1:], tmp_path)
    for release in RELEASES:
        machine = needs_ready(fresh, release)
        shutil.copy(tmp_path / path.name, machine.tree / "tmp")
        machine.ok("mv /usr/bin/cargo /usr/bin/rustc /root")
        try:
            alone = machine.run(WHEEL_RUNS % ("", path.name), timeout_s=600)
            with_debians = machine.ok(WHEEL_RUNS % ("--system-site-packages", path.name), timeout_s=600)
        finally:
            machine.ok("mv /root/cargo /root/rustc /usr/bin")
        assert "/tmp/venv/" in alone.out
        assert "export-size: 16777216" in alone.out
        assert alone.rc == 1
        assert "python3-libnbd" in alone.err
        assert "--system-site-packages" in alone.err
        assert "export-size: 16777216" in with_debians


@pytest.mark.parametrize("release", RELEASES)
def test_a_user_with_sudo_comes_to_ready_too(release: str) -> None:
    with Machine(release, "somebody") as machine:
        machine.add_security()
        said = machine.ok(WHILE_IT_RUNS % (LOOK + READ_BACK), timeout_s=FIRST_S)
        assert "the snapshot was read back" in said
        assert machine.ok("stat -c %U .venv build var") == "somebody\n" * 3


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.timeout(SUITE_S + 600)
def test_the_everyday_suite(fresh: Fresh, release: str) -> None:
    if os.environ.get(SUITE) != "1":
        pytest.skip(f"an hour for both releases: set {SUITE}=1")
    result = needs_ready(fresh, release).run("scripts/test --quick", timeout_s=SUITE_S)
    (ROOT / "build" / "fresh" / f"suite-{release}.log").write_text(result.out + result.err)
    assert result.rc == 0, result.out[-8000:] + result.err[-4000:]
