"""A host's life with polyvol, in a virtual machine: from its installation to its removal.

The tests are one story and run in this order, on one machine.
"""

import json
import re

import pytest

from tests.host.machine import Machine
from tests.host.programs import ASK, LOAD, SERVER, VERIFIED_FILE

pytestmark = [pytest.mark.host, pytest.mark.few, pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
SERVICES = "polyvold.service polyvold.socket polyvold-control.socket"
ONE = "11111111-2222-3333-4444-555555555555"
KERNEL_WAITS_S = 9.0
OTHER = "99999999-2222-3333-4444-555555555555"


def attach_by_hand(machine: Machine, export: str, device: str, connections: int = 1) -> None:
    """Make a kernel block device of an export, by hand."""
    socket = "/var/lib/polyvol/nbd.sock"
    machine.ok(f"nbd-client -unix {socket} -N {export} -C {connections} {device} && udevadm settle")


def wait_for(machine: Machine, condition: str, timeout_s: int = 60) -> None:
    """Until a condition of the shell holds in the machine; if it does not, the failure tells its state."""
    state = "ps -eo pid,etimes,time,args; timeout 20 polyvol volume list; journalctl -n 80 --no-pager"
    waits = f"timeout {timeout_s} sh -c 'until {condition}; do sleep 0.3; done'"
    machine.ok(f"{waits} || {{ {state}; exit 1; }}", timeout_s + 30)


def no_errors(machine: Machine) -> None:
    """Neither the block device nor its filesystem has seen any."""
    said = machine.ok("dmesg")
    assert "I/O error" not in said
    assert "EXT4-fs error" not in said
    assert "rw," in machine.ok("findmnt -no OPTIONS /mnt/data") + ","


def mended(machine: Machine) -> int:
    """How often the connections of data were made again."""
    return machine.ok("journalctl -u polyvol-attach@data -o cat --no-pager").count("is connected again")


def handed_over(machine: Machine) -> int:
    """How often a polyvold has gone on with all of data's connections."""
    said = machine.ok("journalctl -u polyvold VOLUME=data -o cat --no-pager")
    return said.count("4 connections to data resumed after a pause of")


def slow_restarts(machine: Machine) -> int:
    """How often a polyvold that ended closed connections because the disk did not answer within 10 s, or the
    next one was ready after more than 10 s, when the kernel's NBD client connects again."""
    said = machine.ok("journalctl -u polyvold -o cat --no-pager")
    pauses = re.findall(r"resumed after a pause of ([\d.]+) s", said)
    late = said.count("requests or replies did not end in time")
    return late + sum(float(pause) > KERNEL_WAITS_S for pause in pauses)


@pytest.mark.timeout(1200)  # it makes the disk, builds the package and boots, where these are not there yet
def test_the_package_installs_and_enables_nothing(machine: Machine) -> None:
    machine.ok("mkdir /payload && mount -o ro /dev/vdb /payload && dpkg -i /payload/polyvol.deb", 120)
    assert machine.ok(f"systemctl is-enabled {SERVICES} || true").split() == ["disabled"] * 3
    assert machine.ok(f"systemctl is-active {SERVICES} || true").split() == ["inactive"] * 3
    assert machine.ok("stat -c '%U %a' /var/lib/polyvol") == "polyvol 750"
    machine.ok("systemd-analyze security --no-pager --threshold=20 polyvold.service >/dev/null")
    machine.ok(
        "systemd-analyze verify polyvold.service polyvol-attach@x.service polyvol-snapshot@x.timer"
        " polyvol-scrub@x.timer"
    )


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


def test_a_volume_becomes_a_block_device(machine: Machine) -> None:
    machine.ok("polyvol volume create data --size 128M --partition-size 4M --processors 2")
    assert machine.ok("polyvol attach data") == "/dev/polyvol/data"
    shown = machine.ok("cat /sys/block/nbd0/size /sys/block/nbd0/ro /sys/block/nbd0/backend").split()
    assert shown == [str(128 * MIB // 512), "0", "polyvol/data"]
    assert machine.ok("readlink -f /dev/polyvol/data") == "/dev/nbd0"
    assert machine.ok("cat /sys/block/nbd0/queue/fua /sys/block/nbd0/queue/write_cache") == "1\nwrite back"
    assert json.loads(machine.ok("polyvol volume show data --json"))["connections"] == 4
    status = machine.ok("systemctl show -P StatusText polyvol-attach@data")
    assert status == "attached as /dev/polyvol/data"
    machine.ok("mkfs.ext4 -q /dev/polyvol/data && mkdir -p /mnt/data && mount /dev/polyvol/data /mnt/data")
    machine.ok(
        "cp -r /etc /mnt/data/etc; cd /mnt/data/etc; find . -type f | xargs sha256sum >/tmp/sums; sync"
    )


def test_a_snapshot_is_read_only_and_can_be_compared(machine: Machine) -> None:
    take = "polyvol snapshot create data --name then"
    machine.ok(f"fsfreeze -f /mnt/data; {take} || rc=$?; fsfreeze -u /mnt/data; exit ${{rc:-0}}")
    assert machine.ok("polyvol attach data@then --connections 1") == "/dev/polyvol/data@then"
    assert machine.ok("blockdev --getro /dev/polyvol/data@then") == "1"
    machine.ok("rm -r /mnt/data/etc; mkdir -p /mnt/then")
    machine.ok(
        "mount -o ro,noload /dev/polyvol/data@then /mnt/then\n"
        "cd /mnt/then/etc; sha256sum --quiet -c /tmp/sums"
    )
    listed = {each["name"]: each for each in json.loads(machine.ok("polyvol attach --list --json"))}
    assert listed["data@then"]["use"] == "mounted at /mnt/then"
    assert (listed["data@then"]["read_only"], listed["data"]["read_only"]) == (True, False)
    machine.ok("umount /mnt/then; polyvol detach data@then; [ ! -e /dev/polyvol/data@then ]")


def test_what_is_mounted_is_not_detached(machine: Machine) -> None:
    assert "is mounted at /mnt/data" in machine.ok("! polyvol detach data 2>&1")
    assert "attached already" in machine.ok("! polyvol attach data 2>&1")
    assert "no such export" in machine.ok("! polyvol attach nothing 2>&1")
    assert machine.ok("ls /etc/polyvol/attached") == "data.json"
    machine.ok("polyvol attach data@then")
    opened = machine.ok("sleep 60 </dev/polyvol/data@then & ! polyvol detach data@then 2>&1; kill $!")
    assert re.search(r"is open by process \d+ \(sleep\)", opened)
    machine.ok("systemctl is-active -q polyvol-attach@data@then; polyvol detach data@then")
    machine.ok("polyvol volume create swap --size 32M; polyvol attach swap; mkswap /dev/polyvol/swap")
    machine.ok("swapon /dev/polyvol/swap")
    assert "is used as swap" in machine.ok("! polyvol detach swap 2>&1")
    assert "is mounted at /mnt/data" in machine.ok("! polyvol in-use 2>&1")
    machine.ok("systemctl stop polyvol-attach@data; [ -e /sys/block/nbd0/pid ]; ls /mnt/data")
    machine.ok("systemctl start polyvol-attach@data")


@pytest.mark.parametrize(
    "blow",
    [
        "systemctl restart polyvold",
        "systemctl kill -s KILL polyvold",
        "systemctl kill -s KILL polyvol-attach@data; systemctl kill -s KILL polyvold",
    ],
)
def test_a_filesystem_under_load_sees_a_pause_and_no_error(machine: Machine, blow: str) -> None:
    before = mended(machine), handed_over(machine)
    slow = slow_restarts(machine)
    load = machine.start(LOAD, 200)
    machine.ok("sleep 4; " + blow, 90)
    load.ok()
    after = mended(machine), handed_over(machine)
    if "restart" in blow and slow_restarts(machine) == slow:  # the kernel has noticed nothing
        assert after == (before[0], before[1] + 1)
    elif "polyvol-attach" not in blow:
        assert after[0] > before[0]
    no_errors(machine)
    machine.ok("systemctl is-active polyvol-attach@data polyvold")
    assert json.loads(machine.ok("polyvol volume show data --json"))["connections"] == 4


def test_a_volume_that_grows_under_load_grows_on_its_host(machine: Machine) -> None:
    load = machine.start(LOAD, 200)
    machine.ok("sleep 3; polyvol volume grow data --size 192M")
    wait_for(machine, f'[ "$(blockdev --getsize64 /dev/polyvol/data)" = {192 * MIB} ]')
    machine.ok("resize2fs /dev/polyvol/data 2>&1", 120)
    load.ok()
    no_errors(machine)
    assert int(machine.ok("findmnt -bnro SIZE /mnt/data")) > 150 * MIB
    assert json.loads(machine.ok("polyvol volume show data --json"))["size"] == 192 * MIB


def test_after_a_reboot_fstab_has_mounted_it(machine: Machine) -> None:
    machine.ok("polyvol attach data@then")
    machine.ok("echo hello >/mnt/data/hello; umount /mnt/data; mkdir -p /mnt/then")
    machine.ok(
        "echo '/dev/polyvol/data /mnt/data ext4 _netdev,x-systemd.requires=polyvol-attach@data.service 0 0' "
        ">>/etc/fstab\n"
        "echo '/dev/polyvol/data@then /mnt/then ext4 _netdev,ro,noload 0 0' >>/etc/fstab"
    )
    machine.ok("systemctl daemon-reload; systemctl start mnt-data.mount; echo more >>/mnt/data/hello")
    # By hand, without _netdev: nothing orders its end, so the attached device's has to wait for it.
    machine.ok("polyvol volume create byhand --size 64M; polyvol attach byhand; mkdir /mnt/byhand")
    machine.ok("mkfs.ext4 -q /dev/polyvol/byhand; mount /dev/polyvol/byhand /mnt/byhand; swapon --show=NAME")
    machine.ok("dd if=/dev/urandom of=/mnt/byhand/file bs=1M count=20 status=none")
    written = machine.ok("sha256sum </mnt/byhand/file")
    machine.reboot()
    wait_for(machine, "systemctl is-active -q mnt-data.mount mnt-then.mount", 90)
    assert machine.ok("cat /mnt/data/hello; ls -d /mnt/then/etc").split() == [
        "hello",
        "more",
        "/mnt/then/etc",
    ]
    said = machine.ok("journalctl -b -1 -k -o cat --no-pager")
    assert "I/O error" not in said, "the filesystem was not unmounted before its device went"
    assert "ordering cycle" not in machine.ok("journalctl -b -o cat --no-pager")
    machine.ok("sed -i /polyvol/d /etc/fstab; systemctl daemon-reload; umount /mnt/data /mnt/then")
    wait_for(machine, "[ -e /dev/polyvol/byhand -a -e /dev/polyvol/swap ]")
    assert "needs_recovery" not in machine.ok("dumpe2fs -h /dev/polyvol/byhand 2>&1")
    machine.ok("mount /dev/polyvol/byhand /mnt/byhand")
    assert machine.ok("sha256sum </mnt/byhand/file") == written
    machine.ok("umount /mnt/byhand; polyvol detach byhand; polyvol detach swap")
    machine.ok("polyvol volume delete byhand --yes; polyvol volume delete swap --yes")
    machine.ok("polyvol detach data; polyvol detach /dev/polyvol/data@then")
    assert json.loads(machine.ok("polyvol attach --list --json")) == []
    machine.ok("! ls /dev/polyvol /etc/polyvol/attached /run/polyvol/attached 2>/dev/null | grep data")


def test_a_device_grows_and_is_never_given_another_export(machine: Machine) -> None:
    machine.ok(f"{SERVER}\necho {32 * MIB} {ONE} >/tmp/export; systemctl start test-server")
    uri = "nbd+unix:///?socket=/tmp/server.sock"
    assert machine.ok(f"polyvol attach other --uri '{uri}' --device /dev/nbd7") == "/dev/polyvol/other"
    assert machine.ok("readlink -f /dev/polyvol/other") == "/dev/nbd7"
    machine.ok(f"echo {48 * MIB} {ONE} >/tmp/export; systemctl reload polyvol-attach@other")
    wait_for(machine, f'[ "$(blockdev --getsize64 /dev/nbd7)" = {48 * MIB} ]')
    machine.ok(f"echo {64 * MIB} {ONE} >/tmp/export")
    wait_for(machine, f'[ "$(blockdev --getsize64 /dev/nbd7)" = {64 * MIB} ]', 30)
    log = "journalctl -u polyvol-attach@other -o cat --no-pager"
    before = machine.ok(log).count("is connected again")
    machine.ok(f"echo {64 * MIB} {OTHER} >/tmp/export; systemctl restart test-server")
    waiting = machine.start("dd if=/dev/nbd7 of=/dev/null bs=4k count=1 iflag=direct", 60)
    wait_for(machine, f'{log} | grep "another UUID" >/dev/null')
    assert machine.ok(log).count("is connected again") == before
    machine.ok(f"echo {64 * MIB} {ONE} >/tmp/export")
    waiting.ok()
    assert machine.ok(log).count("is connected again") > before
    machine.ok("polyvol detach other; systemctl stop test-server")


def test_a_disk_that_is_pulled_is_missing_at_once_and_heals_when_it_is_back(machine: Machine) -> None:
    machine.add_disk("backing1", 256 * MIB)
    by_id = "/dev/disk/by-id/virtio-backing1"
    wait_for(machine, f"[ -e {by_id} ]")
    machine.ok(f"mke2fs -q {by_id}")
    assert "has an ext2 file system on it" in machine.ok(f"! polyvol device add {by_id} 2>&1")
    node = machine.ok(f"readlink -f {by_id}")
    machine.ok(f"polyvol device add {node} --force --name d1")
    assert f"device d1 is {node}" in machine.ok("journalctl DEVICE=d1 -o cat --no-pager")
    machine.ok("polyvol volume create pulled --size 64M --device d1 --log-device d1; polyvol attach pulled")
    machine.ok("dd if=/dev/urandom of=/dev/polyvol/pulled bs=1M count=32 oflag=direct conv=fsync status=none")
    machine.ok("sha256sum </dev/polyvol/pulled >/tmp/pulled.sum")
    state = "polyvol device show d1 | grep >/dev/null"
    machine.ok(f"{state} 'state: *ok'")
    machine.unplug("backing1")
    wait_for(machine, f'{state} "state: *missing"', 30)
    machine.ok("! dd if=/dev/polyvol/pulled of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null")
    assert json.loads(machine.ok("polyvol volume show data --json"))["state"] == "serving"
    machine.plug("backing1")
    wait_for(machine, f'{state} "state: *ok"', 30)
    said = machine.ok("journalctl -u polyvold -o short-unix --no-pager")
    assert "device d1 is gone" in said
    assert "device d1 is back" in said
    machine.ok("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/polyvol/pulled | cmp - /tmp/pulled.sum")
    machine.ok("polyvol detach pulled")


@pytest.mark.parametrize(
    ("export", "size", "device", "kind"),
    [("small", "48M", "/dev/nbd0", "ext4"), ("large", "320M", "/dev/nbd1", "xfs")],
)
def test_a_filesystem_on_a_device_made_by_hand(
    machine: Machine, export: str, size: str, device: str, kind: str
) -> None:
    machine.ok(f"polyvol volume create {export} --size {size} --processors 2")
    said = machine.ok(f"journalctl -u polyvold VOLUME={export} -o cat --no-pager")
    assert f"volume {export} was created" in said
    assert "volume pulled" not in said
    attach_by_hand(machine, export, device, connections=2)
    machine.ok(f"mkfs.{kind} -q {device} && mkdir -p /mnt/{export} && mount {device} /mnt/{export}", 120)
    machine.ok(VERIFIED_FILE.format(f"/mnt/{export}"), 120)
    machine.ok(f"cp -r /etc /mnt/{export}/tree")
    machine.ok(f"cd /mnt/{export}/tree && find . -type f | xargs sha256sum >/tmp/{export}.sums && sync")


def test_a_snapshot_by_the_timer_s_service_mounts_read_only_and_is_what_was_there(machine: Machine) -> None:
    for volume in ("small", "large"):
        # Frozen, a filesystem has nothing in its journal that a read-only mount would have to replay.
        take = f"systemctl start polyvol-snapshot@{volume}.service"
        machine.ok(f"fsfreeze -f /mnt/{volume}; {take} || rc=$?; fsfreeze -u /mnt/{volume}; exit ${{rc:-0}}")
    machine.ok("rm -r /mnt/small/tree /mnt/large/tree && sync")
    snapshots = json.loads(machine.ok("polyvol snapshot list --json"))
    exports = {each["volume"]: each["export"] for each in snapshots if each["volume"] != "data"}
    assert all(re.fullmatch(r"(small|large)@auto-\d{8}T\d{6}Z", export) for export in exports.values()), (
        exports
    )
    assert "was taken" in machine.ok(
        f"journalctl SNAPSHOT={exports['small'].split('@')[1]} -o cat --no-pager"
    )
    for volume, options in (("small", "ro,noload"), ("large", "ro,norecovery,nouuid")):
        attach_by_hand(machine, exports[volume], "/dev/nbd2")
        assert machine.ok("blockdev --getro /dev/nbd2") == "1"
        machine.ok(f"mount -o {options} /dev/nbd2 /mnt/then")
        machine.ok(f"cd /mnt/then/tree && sha256sum --quiet -c /tmp/{volume}.sums")
        machine.ok("umount /mnt/then && nbd-client -d /dev/nbd2")
        wait_for(machine, "! [ -e /sys/block/nbd2/pid ]")


def test_the_timers_can_be_started(machine: Machine) -> None:
    machine.ok("systemctl start polyvol-snapshot@data.timer polyvol-scrub@data.timer")
    assert "polyvol-snapshot@data.timer" in machine.ok("systemctl list-timers --no-pager --no-legend")
    machine.ok("systemctl stop polyvol-snapshot@data.timer polyvol-scrub@data.timer")


def test_a_restart_refuses_nobody(machine: Machine) -> None:
    machine.ok("umount /mnt/small /mnt/large; nbd-client -d /dev/nbd0; nbd-client -d /dev/nbd1")
    wait_for(machine, "! [ -e /sys/block/nbd0/pid -o -e /sys/block/nbd1/pid ]")
    asking = machine.start(ASK, 120)
    wait_for(machine, "[ -e /tmp/asking ]")
    machine.ok("systemctl restart polyvold", 90)
    machine.ok("sleep 1; rm /tmp/asking")
    greeted, dropped, longest = re.findall(r"[\d.]+", asking.ok())
    assert int(greeted) >= 2
    assert int(dropped) <= 1
    assert float(longest) > 1.0, "nobody had to wait: the restart was not seen"


def test_a_reload_grows_the_processors(machine: Machine) -> None:
    machine.ok("echo 'processors = 3' >>/etc/polyvol/polyvold.toml; systemctl reload polyvold")
    wait_for(machine, 'polyvol status | grep -x "processors: *3" >/dev/null')


def test_a_daemon_that_hangs_is_started_again(machine: Machine) -> None:
    machine.ok(
        "mkdir -p /run/systemd/system/polyvold.service.d\n"
        "printf '[Service]\\nWatchdogSec=6\\n' >/run/systemd/system/polyvold.service.d/test.conf\n"
        "systemctl daemon-reload; systemctl restart polyvold",
        90,
    )
    before = int(machine.ok("systemctl show -P NRestarts polyvold"))
    machine.ok("sleep 8; systemctl is-active polyvold")  # it works, so it pings in time
    assert int(machine.ok("systemctl show -P NRestarts polyvold")) == before
    machine.ok("kill -STOP $(systemctl show -P MainPID polyvold)")
    wait_for(machine, f'[ "$(systemctl show -P NRestarts polyvold)" -gt {before} ]', 60)
    machine.ok("rm -r /run/systemd/system/polyvold.service.d; systemctl daemon-reload; polyvol status")


def test_an_upgrade_restarts_the_service_and_keeps_everything(machine: Machine) -> None:
    before = machine.ok("systemctl show -P MainPID polyvold; cat /etc/polyvol/polyvold.toml").split("\n", 1)
    machine.ok("mount -o ro /dev/vdb /payload && dpkg -i --force-confold /payload/newer.deb", 120)
    after = machine.ok("systemctl show -P MainPID polyvold; cat /etc/polyvol/polyvold.toml").split("\n", 1)
    assert after[0] not in ("0", before[0])
    assert after[1] == before[1]
    states = json.loads(machine.ok("polyvol volume list --json"))
    assert {volume["state"] for volume in states} == {"serving"}


def test_a_package_in_use_is_not_removed(machine: Machine) -> None:
    machine.ok("polyvol attach data; mount /dev/polyvol/data /mnt/data")
    for verb in ("dpkg --remove", "apt-get -y remove", "apt-get -y purge"):
        said = machine.ok(f"! {verb} polyvol 2>&1", 90)
        assert "data (/dev/nbd0) is mounted at /mnt/data; end that, then `polyvol detach data`" in said
    machine.ok("systemctl is-active -q polyvold polyvol-attach@data; echo on >>/mnt/data/hello; sync")
    machine.ok("umount /mnt/data")
    # One connection: where threads start slowly, the kernel may read the replies of a second one late.
    attach_by_hand(machine, "small", "/dev/nbd5")
    assert "1 NBD connection is open to small" in machine.ok("! dpkg --remove polyvol 2>&1", 90)
    machine.ok("nbd-client -d /dev/nbd5")
    wait_for(machine, "! [ -e /sys/block/nbd5/pid ]")


def test_force_ends_a_device_and_later_writes_fail(machine: Machine) -> None:
    machine.ok("mount /dev/polyvol/data /mnt/data; echo lost >/mnt/data/lost")
    assert "it was mounted at /mnt/data" in machine.ok("polyvol detach data --force")
    machine.ok("! dd if=/dev/zero of=/mnt/data/more bs=1M count=1 conv=fsync 2>&1")
    machine.ok("umount /mnt/data || true; umount -l /mnt/data || true")
    wait_for(machine, "! [ -e /sys/block/nbd0/pid ]")


def test_removing_keeps_the_volumes_and_purging_asks(machine: Machine) -> None:
    machine.ok("dpkg --remove polyvol", 90)
    machine.ok("[ -e /var/lib/polyvol/catalog.db -a ! -e /usr/lib/polyvol -a ! -e /usr/bin/polyvol ]")
    assert machine.ok("pgrep -x polyvold || true") == ""
    kept = machine.ok("DEBIAN_FRONTEND=noninteractive dpkg --purge polyvol 2>&1", 90)
    assert "the volumes in /var/lib/polyvol are kept" in kept
    machine.ok("[ -e /var/lib/polyvol/catalog.db ]; mount -o ro /dev/vdb /payload || true")
    machine.ok("dpkg -i /payload/polyvol.deb; systemctl start polyvold; polyvol volume show data", 120)
    machine.ok("echo 'polyvol polyvol/delete-volumes boolean true' | debconf-set-selections")
    machine.ok("DEBIAN_FRONTEND=noninteractive dpkg --purge polyvol", 90)
    left = machine.ok(
        "find / -xdev -name '*polyvol*' -not -path '/proc/*' -not -path '/var/log/*' -not -path '/tmp/*'"
        " -not -name 'polyvol-agent*' -not -name 'polyvol.agent'; getent passwd polyvol || true"
    )
    assert left == ""
    assert machine.ok("systemctl --failed --no-legend") == ""
