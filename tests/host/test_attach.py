"""Volumes attached to the kernel, in a virtual machine: used, daemon restarted, killed, rebooted, detached.

The tests are one story and run in this order, on one machine of their own.
"""

import json
from collections.abc import Iterator

import pytest

from tests.host.conftest import ensure_package
from tests.host.image import ensure_image
from tests.host.machine import Machine
from tests.support.daemon import short_directory

pytestmark = [pytest.mark.host, pytest.mark.few, pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
FIO = (
    "fio --name=load --directory=/mnt/data --size=8M --bs=16k --rw=randwrite --ioengine=libaio --iodepth=8 "
    "--direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --time_based --runtime={0} --minimal"
)
# A server of one export full of zeros; /tmp/export has its size in bytes and its UUID.
SERVER = r"""
cat >/tmp/server.py <<'PYTHON'
import os, socket, struct, sys, threading
def told():
    size, uuid = open("/tmp/export").read().split()
    return int(size), uuid
def read(peer, length):
    data = peer.recv(length, socket.MSG_WAITALL) if length else b""
    if len(data) < length:
        raise EOFError
    return data
def answer(peer, option, kind, data=b""):
    peer.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(data)) + data)
def serve(peer):
    try:
        peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        read(peer, 4)
        while True:
            _, option, length = struct.unpack(">QII", read(peer, 16))
            read(peer, length)
            if option == 2:
                return
            size, uuid = told()
            answer(peer, option, 3, struct.pack(">HQH", 0, size, 0x10d))
            answer(peer, option, 3, struct.pack(">H", 2) + uuid.encode())
            answer(peer, option, 1)
            if option == 7:
                break
        while True:
            _, _, command, cookie, _, length = struct.unpack(">IHHQQI", read(peer, 28))
            if command == 2:
                return
            if command == 1:
                read(peer, length)
            data = bytes(length) if command == 0 else b""
            peer.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + data)
    except (EOFError, OSError):
        pass
    finally:
        peer.close()
listener = socket.socket(socket.AF_UNIX)
if os.path.exists("/tmp/server.sock"):
    os.unlink("/tmp/server.sock")
listener.bind("/tmp/server.sock")
listener.listen()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
PYTHON
cat >/run/systemd/system/test-server.service <<'UNIT'
[Service]
ExecStart=/usr/bin/python3 /tmp/server.py
UNIT
systemctl daemon-reload
"""
ONE = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def running() -> Iterator[Machine]:
    """A machine for this file alone."""
    with (
        short_directory() as directory,
        Machine(directory, ensure_image(), {"polyvol.deb": ensure_package()}) as machine,
    ):
        yield machine


def wait_for(machine: Machine, condition: str, timeout_s: int = 60) -> None:
    """Until a condition of the shell holds in the machine."""
    machine.ok(f"timeout {timeout_s} sh -c 'until {condition}; do sleep 0.3; done'", timeout_s + 10)


def no_errors(machine: Machine) -> None:
    """Neither the block device nor its filesystem has seen any."""
    said = machine.ok("dmesg")
    assert "I/O error" not in said
    assert "EXT4-fs error" not in said
    assert "rw," in machine.ok("findmnt -no OPTIONS /mnt/data") + ","


def mended(machine: Machine) -> int:
    """How often the connections of data were made anew."""
    return machine.ok("journalctl -u polyvol-attach@data -o cat --no-pager").count("is connected again")


def handed_over(machine: Machine) -> int:
    """How often a polyvold has gone on with all of data's connections."""
    said = machine.ok("journalctl -u polyvold VOLUME=data -o cat --no-pager")
    return said.count("4 connections to data went on after a pause of")


@pytest.mark.timeout(1200)  # it makes the disk, builds the package and boots, where these are not there yet
def test_a_volume_becomes_a_block_device(machine: Machine) -> None:
    machine.ok("mkdir /payload && mount -o ro /dev/vdb /payload && dpkg -i /payload/polyvol.deb", 120)
    machine.ok("systemd-analyze verify polyvol-attach@data.service")
    machine.ok("systemctl enable --now polyvold", 120)
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
    load = machine.start(FIO.format(20), 200)
    machine.ok("sleep 4; " + blow, 90)
    load.ok()
    after = mended(machine), handed_over(machine)
    if "restart" in blow:  # the kernel has noticed nothing
        assert after == (before[0], before[1] + 1)
    elif "polyvol-attach" not in blow:
        assert after[0] > before[0]
    no_errors(machine)
    machine.ok("systemctl is-active polyvol-attach@data polyvold")
    assert json.loads(machine.ok("polyvol volume show data --json"))["connections"] == 4


def test_a_volume_that_grows_under_load_grows_on_its_host(machine: Machine) -> None:
    load = machine.start(FIO.format(20), 200)
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
    wait_for(machine, f'{log} | grep -q "another UUID"')
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
    machine.ok(f"polyvol device add $(readlink -f {by_id}) --force --name d1")
    machine.ok("polyvol volume create pulled --size 64M --device d1 --log-device d1; polyvol attach pulled")
    machine.ok("dd if=/dev/urandom of=/dev/polyvol/pulled bs=1M count=32 oflag=direct conv=fsync status=none")
    machine.ok("sha256sum </dev/polyvol/pulled >/tmp/pulled.sum")
    state = "polyvol device show d1 | grep -q"
    machine.ok(f"{state} 'state: *ok'")
    machine.unplug("backing1")
    wait_for(machine, f'{state} "state: *missing"', 30)
    machine.ok("! dd if=/dev/polyvol/pulled of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null")
    machine.plug("backing1")
    wait_for(machine, f'{state} "state: *ok"', 30)
    said = machine.ok("journalctl -u polyvold -o short-unix --no-pager")
    assert "device d1 is gone" in said
    assert "device d1 is back" in said
    machine.ok("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/polyvol/pulled | cmp - /tmp/pulled.sum")
    machine.ok("polyvol detach pulled")
