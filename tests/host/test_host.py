"""A host's life with polyvol, in a virtual machine: installed, used, restarted, killed, upgraded, purged.

The tests are one story and run in this order, on one machine.
"""

import json
import re

import pytest

from tests.host.machine import Machine

pytestmark = [pytest.mark.host, pytest.mark.few, pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
SERVICES = "polyvold.service polyvold.socket polyvold-control.socket"
# Clients that come one after the other for as long as /tmp/asking is there: each must be greeted, however
# long it waits. Only one whose connection the old daemon had accepted just then may be dropped.
ASK = r"""
touch /tmp/asking
cat >/tmp/ask.py <<'PYTHON'
import os, socket, time
path, greeted, dropped, longest = "/var/lib/polyvol/nbd.sock", 0, 0, 0.0
while os.path.exists("/tmp/asking"):
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        try:
            hello = client.recv(8)
        except ConnectionResetError:
            hello = b""
    if hello == b"NBDMAGIC":
        greeted += 1
        longest = max(longest, time.monotonic() - begun)
    else:
        dropped += 1
    time.sleep(0.05)
print(f"greeted {greeted} dropped {dropped} longest {longest:.1f}")
PYTHON
python3 /tmp/ask.py
"""
FIO = (
    "fio --name=verify --directory={0} --size={1}M --bs=4k --rw=randwrite --ioengine=libaio --iodepth=8 "
    "--direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --end_fsync=1 --minimal >/dev/null"
)
# Writes numbered chunks around a block device until it fails, and notes the last acknowledged; checks them.
NUMBERED = r"""
cat >/tmp/numbered.py <<'PYTHON'
import mmap, os, sys
CHUNK, CHUNKS = 16384, 2048
device = os.open(sys.argv[2], os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, CHUNK)
def numbered(number):
    return number.to_bytes(8, "little") * (CHUNK // 8)
if sys.argv[1] == "write":
    number = 0
    try:
        while True:
            number += 1
            buffer[:] = numbered(number)
            os.pwrite(device, buffer, number % CHUNKS * CHUNK)
            with open("/tmp/acknowledged", "w") as told:
                told.write(str(number))
    except OSError as error:
        print(f"failed at {number}: {error}")
else:
    last = int(open("/tmp/acknowledged").read())
    for number in range(max(1, last - CHUNKS + 2), last + 1):
        os.preadv(device, [buffer], number % CHUNKS * CHUNK)
        assert buffer[:] == numbered(number), f"chunk {number} of {last} is lost"
    print(last)
PYTHON
"""
ATTACH_UNIT = """
cat >/etc/systemd/system/attach-data.service <<'UNIT'
[Unit]
Wants=polyvold.service
After=polyvold.service
Before=remote-fs-pre.target
DefaultDependencies=no
Conflicts=umount.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nbd-client -unix /var/lib/polyvol/nbd.sock -N data /dev/nbd0
ExecStop=/usr/sbin/nbd-client -d /dev/nbd0
UNIT
"""


def attach(machine: Machine, export: str, device: str, connections: int = 1) -> None:
    """Make a kernel block device of an export, by hand."""
    socket = "/var/lib/polyvol/nbd.sock"
    machine.ok(f"nbd-client -unix {socket} -N {export} -C {connections} {device} && udevadm settle")


def wait_for(machine: Machine, condition: str, timeout_s: int = 60) -> None:
    """Until a condition of the shell holds in the machine."""
    machine.ok(f"timeout {timeout_s} sh -c 'until {condition}; do sleep 0.3; done'", timeout_s + 10)


@pytest.mark.timeout(1200)  # it makes the disk, builds the package and boots, where these are not there yet
def test_the_package_installs_and_enables_nothing(machine: Machine) -> None:
    machine.ok("mkdir /payload && mount -o ro /dev/vdb /payload && dpkg -i /payload/polyvol.deb", 120)
    assert machine.ok(f"systemctl is-enabled {SERVICES} || true").split() == ["disabled"] * 3
    assert machine.ok(f"systemctl is-active {SERVICES} || true").split() == ["inactive"] * 3
    assert machine.ok("stat -c '%U %a' /var/lib/polyvol") == "polyvol 750"
    machine.ok("systemd-analyze security --no-pager --threshold=20 polyvold.service >/dev/null")
    machine.ok("systemd-analyze verify polyvold.service polyvol-snapshot@x.timer polyvol-scrub@x.timer")


def test_the_service_starts_and_says_how_it_is(machine: Machine) -> None:
    machine.ok("systemctl enable --now polyvold", 120)
    show = machine.ok("systemctl show -p ActiveState,StatusText,User,WatchdogUSec polyvold").splitlines()
    assert sorted(show) == [
        "ActiveState=active",
        "StatusText=0 volumes, 0 snapshots, 0 clients",
        "User=polyvol",
        "WatchdogUSec=1min",
    ]
    assert machine.ok("stat -c '%U %G %a' /var/lib/polyvol/control.sock") == "polyvol polyvol 660"
    capabilities = machine.ok("grep ^CapEff: /proc/$(systemctl show -P MainPID polyvold)/status")
    assert int(capabilities.split()[1], 16) == 0


def test_volumes_are_made_on_a_disk_and_on_files(machine: Machine) -> None:
    machine.add_disk("backing0", 1024 * MIB)
    wait_for(machine, "[ -e /dev/disk/by-id/virtio-backing0 ]")
    machine.ok("polyvol device add /dev/disk/by-id/virtio-backing0 --name d0")
    machine.ok("polyvol volume create data --size 256M --processors 2 --device d0 --log-device d0")
    machine.ok("polyvol volume create files --size 320M --processors 2")
    states = json.loads(machine.ok("polyvol volume list --json"))
    assert {volume["name"]: volume["state"] for volume in states} == {"data": "serving", "files": "serving"}
    fields = "journalctl -u polyvold VOLUME=data -o cat --no-pager"
    assert "volume data was created" in machine.ok(fields)
    assert "files" not in machine.ok(fields)
    assert "device d0 is /dev/disk/by-id/virtio-backing0" in machine.ok(
        "journalctl DEVICE=d0 -o cat --no-pager"
    )


@pytest.mark.parametrize(
    ("export", "device", "kind"), [("data", "/dev/nbd0", "ext4"), ("files", "/dev/nbd1", "xfs")]
)
def test_a_filesystem_keeps_what_is_written(machine: Machine, export: str, device: str, kind: str) -> None:
    attach(machine, export, device, connections=2)
    machine.ok(f"mkfs.{kind} -q {device} && mkdir -p /mnt/{export} && mount {device} /mnt/{export}", 120)
    machine.ok(FIO.format(f"/mnt/{export}", 6), 120)
    machine.ok(f"cp -r /usr/share/perl5 /mnt/{export}/tree 2>/dev/null || cp -r /etc /mnt/{export}/tree")
    machine.ok(
        f"cd /mnt/{export}/tree && find . -type f | sort | xargs sha256sum >/tmp/{export}.sums && sync"
    )


def test_a_snapshot_by_the_timer_s_service_mounts_read_only_and_is_what_was_there(machine: Machine) -> None:
    for volume in ("data", "files"):
        # Frozen, a filesystem has nothing in its journal that a read-only mount would have to replay.
        take = f"systemctl start polyvol-snapshot@{volume}.service"
        machine.ok(f"fsfreeze -f /mnt/{volume}; {take} || rc=$?; fsfreeze -u /mnt/{volume}; exit ${{rc:-0}}")
    machine.ok("rm -r /mnt/data/tree /mnt/files/tree && sync")
    snapshots = json.loads(machine.ok("polyvol snapshot list --json"))
    exports = {snapshot["volume"]: snapshot["export"] for snapshot in snapshots}
    assert all(re.fullmatch(r"(data|files)@auto-\d{8}T\d{6}Z", export) for export in exports.values()), (
        exports
    )
    assert "was taken" in machine.ok(f"journalctl SNAPSHOT={exports['data'].split('@')[1]} -o cat --no-pager")
    machine.ok("mkdir -p /mnt/then")
    for volume, options in (("data", "ro,noload"), ("files", "ro,norecovery,nouuid")):
        attach(machine, exports[volume], "/dev/nbd2")
        assert machine.ok("blockdev --getro /dev/nbd2") == "1"
        machine.ok(f"mount -o {options} /dev/nbd2 /mnt/then")
        machine.ok(f"cd /mnt/then/tree && sha256sum --quiet -c /tmp/{volume}.sums")
        machine.ok("umount /mnt/then && nbd-client -d /dev/nbd2")
        wait_for(machine, "! [ -e /sys/block/nbd2/pid ]")


def test_the_timers_can_be_started(machine: Machine) -> None:
    machine.ok("systemctl start polyvol-snapshot@data.timer polyvol-scrub@data.timer")
    assert "polyvol-snapshot@data.timer" in machine.ok("systemctl list-timers --no-pager --no-legend")
    machine.ok("systemctl stop polyvol-snapshot@data.timer polyvol-scrub@data.timer")


def detach_all(machine: Machine) -> None:
    """Unmount and detach what the tests have attached."""
    machine.ok("umount /mnt/data /mnt/files; nbd-client -d /dev/nbd0; nbd-client -d /dev/nbd1")
    wait_for(machine, "! [ -e /sys/block/nbd0/pid -o -e /sys/block/nbd1/pid ]")


def test_a_restart_refuses_nobody(machine: Machine) -> None:
    machine.ok(FIO.format("/mnt/data", 2), 60)
    detach_all(machine)
    asking = machine.start(ASK, 120)
    wait_for(machine, "[ -e /tmp/asking ]")
    machine.ok("systemctl restart polyvold", 90)
    machine.ok("sleep 1; rm /tmp/asking")
    greeted, dropped, longest = re.findall(r"[\d.]+", asking.ok())
    assert int(greeted) >= 2
    assert int(dropped) <= 1
    assert float(longest) > 1.0, "nobody had to wait: the restart was not seen"


def test_a_killed_daemon_is_started_again_and_nothing_acknowledged_is_lost(machine: Machine) -> None:
    machine.ok("polyvol volume create raw --size 64M --partition-size 1M")
    attach(machine, "raw", "/dev/nbd3")
    load = machine.start(f"{NUMBERED} python3 /tmp/numbered.py write /dev/nbd3", 120)
    machine.ok("until [ -s /tmp/acknowledged ]; do sleep 0.1; done; sleep 1")
    machine.ok("polyvol snapshot create raw --name middle; sleep 1; systemctl kill -s KILL polyvold")
    # Attached by hand, a device keeps its requests until it is detached: only then does the load fail.
    machine.ok("nbd-client -d /dev/nbd3")
    load.ok()
    wait_for(machine, '[ "$(systemctl show -P SubState polyvold)" = running ]', 90)
    assert int(machine.ok("systemctl show -P NRestarts polyvold")) >= 1
    attach(machine, "raw", "/dev/nbd4")
    assert int(machine.ok("python3 /tmp/numbered.py check /dev/nbd4")) > 10
    machine.ok("nbd-client -d /dev/nbd4")
    machine.ok("polyvol snapshot delete raw@middle && polyvol volume delete raw --yes")


def test_a_daemon_that_hangs_is_started_again(machine: Machine) -> None:
    machine.ok(
        "mkdir -p /run/systemd/system/polyvold.service.d\n"
        "printf '[Service]\\nWatchdogSec=6\\n' >/run/systemd/system/polyvold.service.d/test.conf\n"
        "systemctl daemon-reload; systemctl restart polyvold",
        90,
    )
    before = int(machine.ok("systemctl show -P NRestarts polyvold"))
    machine.ok("sleep 8; systemctl is-active polyvold")  # it is well, so it pings in time
    assert int(machine.ok("systemctl show -P NRestarts polyvold")) == before
    machine.ok("kill -STOP $(systemctl show -P MainPID polyvold)")
    wait_for(machine, f'[ "$(systemctl show -P NRestarts polyvold)" -gt {before} ]', 60)
    machine.ok("rm -r /run/systemd/system/polyvold.service.d; systemctl daemon-reload")
    machine.ok("systemctl restart polyvold; polyvol status", 90)


def test_a_reload_grows_the_processors(machine: Machine) -> None:
    machine.ok("echo 'processors = 3' >>/etc/polyvol/polyvold.toml; systemctl reload polyvold")
    wait_for(machine, 'polyvol status | grep -qx "processors: *3"')


def test_a_disk_that_is_pulled_fails_its_volume_alone_and_comes_back(machine: Machine) -> None:
    attach(machine, "data", "/dev/nbd6")
    attach(machine, "files", "/dev/nbd7")
    machine.ok("sha256sum </dev/nbd6 >/tmp/whole.sum", 120)
    machine.unplug("backing0")
    wait_for(machine, "! [ -e /dev/disk/by-id/virtio-backing0 ]")
    machine.ok(
        "echo 3 >/proc/sys/vm/drop_caches; ! dd if=/dev/nbd6 of=/dev/null bs=1M iflag=direct 2>/tmp/said;"
        "grep -q 'Input/output error' /tmp/said",
        60,
    )
    machine.ok("dd if=/dev/nbd7 of=/dev/null bs=1M count=64 iflag=direct status=none")
    machine.ok("nbd-client -d /dev/nbd6; nbd-client -d /dev/nbd7")
    machine.plug("backing0")
    wait_for(machine, "[ -e /dev/disk/by-id/virtio-backing0 ]")
    machine.ok("systemctl restart polyvold", 90)
    attach(machine, "data", "/dev/nbd8")
    machine.ok("sha256sum </dev/nbd8 | cmp - /tmp/whole.sum; nbd-client -d /dev/nbd8", 120)


def test_after_a_reboot_fstab_has_mounted_it(machine: Machine) -> None:
    machine.ok(ATTACH_UNIT)
    machine.ok(
        "echo '/dev/nbd0 /mnt/data ext4 _netdev,x-systemd.requires=attach-data.service 0 0' >>/etc/fstab"
    )
    machine.ok("systemctl daemon-reload; systemctl start attach-data; mkfs.ext4 -q -F /dev/nbd0", 90)
    machine.ok("mkdir -p /mnt/data; systemctl start mnt-data.mount; echo hello >/mnt/data/hello", 90)
    machine.reboot()
    wait_for(machine, "systemctl is-active -q mnt-data.mount", 90)
    assert machine.ok("cat /mnt/data/hello; findmnt -no SOURCE,FSTYPE /mnt/data").split() == [
        "hello",
        "/dev/nbd0",
        "ext4",
    ]
    # Of that device: others were pulled and killed before.
    said = machine.ok("journalctl -b -1 -k -o cat --no-pager")
    assert "I/O error, dev nbd0" not in said, "the filesystem was not unmounted before its device went"


def test_an_upgrade_restarts_the_service_and_keeps_everything(machine: Machine) -> None:
    machine.ok("systemctl stop mnt-data.mount attach-data.service")
    machine.ok("sed -i /nbd0/d /etc/fstab; systemctl daemon-reload")
    before = machine.ok("systemctl show -P MainPID polyvold; cat /etc/polyvol/polyvold.toml").split("\n", 1)
    machine.ok("mount -o ro /dev/vdb /payload && dpkg -i --force-confold /payload/newer.deb", 120)
    after = machine.ok("systemctl show -P MainPID polyvold; cat /etc/polyvol/polyvold.toml").split("\n", 1)
    assert after[0] not in ("0", before[0])
    assert after[1] == before[1]
    states = json.loads(machine.ok("polyvol volume list --json"))
    assert {volume["state"] for volume in states} == {"serving"}


def test_removing_keeps_the_volumes_and_purging_leaves_nothing(machine: Machine) -> None:
    machine.ok("dpkg --remove polyvol", 90)
    machine.ok("[ -e /var/lib/polyvol/catalog.db -a ! -e /opt/polyvol -a ! -e /usr/bin/polyvol ]")
    assert machine.ok("pgrep -x polyvold || true") == ""
    machine.ok("dpkg -i --force-confold /payload/polyvol.deb && systemctl start polyvold", 120)
    assert len(json.loads(machine.ok("polyvol volume list --json"))) == 2
    machine.ok("dpkg --purge polyvol", 90)
    left = machine.ok(
        "find / -xdev -name '*polyvol*' -not -path '/proc/*' -not -path '/var/log/*' -not -path '/tmp/*'"
        " -not -name 'polyvol-agent*' -not -name 'polyvol.agent'; getent passwd polyvol || true"
    )
    assert left == ""
    assert machine.ok("systemctl --failed --no-legend") == ""
