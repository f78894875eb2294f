"""test_nbd_clients: the NBD clients that people use find what they expect: nbdinfo, nbdcopy, qemu, nbdsh.

How it works      Each test has a polyvold of its own with one volume on two processors. Every client is the
                  system's own program.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd as libnbd
import pytest

from tests.clients.system import delete_when_unused
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import check, run

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def volume(daemon: Daemon) -> str:
    """A volume of 64 partitions."""
    return daemon.make_volume("v", size="64M", partition_size="1M")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """An image with data, zeroes and holes, not a whole number of partitions of it each."""
    path = tmp_path / "image"
    draw = random.Random(8)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for _ in range(12):
            file.seek(draw.randrange(SIZE - 3 * MIB))
            file.write(draw.randbytes(draw.randrange(1, 2 * MIB)))
    yield path
    path.unlink()


def listed(daemon: Daemon) -> dict[str, Any]:
    """What nbdinfo lists, by export."""
    told = json.loads(check("nbdinfo", "--list", "--json", nbd.uri("", daemon.nbd_socket)))
    return {export["export-name"]: export for export in told["exports"]}


def test_nbdinfo_tells_what_an_export_can_do(daemon: Daemon, volume: str) -> None:
    told = nbd.info(daemon.uri(volume))
    assert told["export-size"] == SIZE
    assert told["is_read_only"] is False
    for ability in ("flush", "fua", "trim", "zero", "fast_zero", "multi_conn", "cache", "df"):
        assert told[f"can_{ability}"] is True, ability
    assert told["block_size_minimum"] == 1
    assert told["block_size_preferred"] == 4096
    assert told["block_size_maximum"] == 32 * MIB
    assert "base:allocation" in told["contexts"]
    daemon.ok("snapshot", "create", volume, "--name", "s")
    told = nbd.info(daemon.uri(f"{volume}@s"))
    assert told["is_read_only"] is True
    assert told["export-size"] == SIZE
    assert told["can_multi_conn"] is True
    assert "polyvol" in check("nbdinfo", "--list", nbd.uri("", daemon.nbd_socket)) or told["description"]


def test_every_export_is_listed_and_a_snapshot_appears_at_once(daemon: Daemon, volume: str) -> None:
    assert set(listed(daemon)) == {volume}
    with nbd.connect(daemon.uri(volume)) as handle:
        handle.pwrite(b"old!", 0)
        daemon.ok("snapshot", "create", volume, "--name", "one")
        assert set(listed(daemon)) == {volume, f"{volume}@one"}
        handle.pwrite(b"new!", 0)
        with nbd.connect(daemon.uri(f"{volume}@one")) as snapshot:
            assert snapshot.pread(4, 0) == b"old!"
            assert handle.pread(4, 0) == b"new!"
        delete_when_unused(daemon, volume, "one")
        assert set(listed(daemon)) == {volume}
        assert handle.pread(4, 0) == b"new!"


def test_nbdinfo_maps_what_is_allocated(daemon: Daemon, volume: str) -> None:
    with nbd.connect(daemon.uri(volume)) as handle:
        handle.pwrite(b"x" * 8192, 3 * MIB - 4096)
        daemon.ok("snapshot", "create", volume, "--name", "s")
        handle.pwrite(b"y" * 4096, 10 * MIB)
        handle.zero(4096, 3 * MIB)
    for export, data in (
        (volume, [(3 * MIB - 4096, 4096), (10 * MIB, 4096)]),
        (f"{volume}@s", [(3 * MIB - 4096, 8192)]),
    ):
        told = json.loads(check("nbdinfo", "--map", "--json", daemon.uri(export)))
        assert sum(run["length"] for run in told) == SIZE
        assert [(run["offset"], run["length"]) for run in told if run["type"] == 0] == data, export
        assert all(run["type"] == 3 for run in told if run["type"] != 0), export
    totals = json.loads(check("nbdinfo", "--map", "--totals", "--json", daemon.uri(volume)))
    assert sum(run["size"] for run in totals) == SIZE


@pytest.mark.parametrize("connections", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_nbdcopy_in_and_out(daemon: Daemon, volume: str, image: Path, connections: int) -> None:
    many = [f"--connections={connections}", "--requests=16", "--flush"]
    nbd.copy(image, daemon.uri(volume), *many)
    daemon.ok("snapshot", "create", volume, "--name", "s")
    for export in (volume, f"{volume}@s"):
        out = image.with_suffix(f".{connections}")
        nbd.copy(daemon.uri(export), out, *many)
        assert out.read_bytes() == image.read_bytes(), export
        out.unlink()
    daemon.make_volume("w", size="64M", partition_size="4M", processors=1)
    nbd.copy(daemon.uri(f"{volume}@s"), daemon.uri("w"), *many)
    nbd.qemu_compare(image, daemon.uri("w"))


def test_qemu_img_converts_and_compares(daemon: Daemon, volume: str, image: Path) -> None:
    raw = ["-f", "raw", "-O", "raw"]
    check("qemu-img", "convert", "-n", *raw, image, daemon.uri(volume))
    nbd.qemu_compare(image, daemon.uri(volume))
    daemon.ok("snapshot", "create", volume, "--name", "s")
    nbd.qemu_io(daemon.uri(volume), "write -P 1 0 1M", "write -z -u 20M 20M", "discard 40M 8M")
    nbd.qemu_compare(image, daemon.uri(f"{volume}@s"))
    out = image.with_suffix(".out")
    check("qemu-img", "convert", "-W", "-m", 8, *raw, daemon.uri(f"{volume}@s"), out)
    assert out.read_bytes() == image.read_bytes()
    mapped = json.loads(check("qemu-img", "map", "--output=json", "-f", "raw", daemon.uri(volume)))
    assert sum(part["length"] for part in mapped) == SIZE
    with out.open("r+b") as file:
        file.write(b"\1" * MIB)
        for offset, length in ((20 * MIB, 20 * MIB), (40 * MIB, 8 * MIB)):
            file.seek(offset)
            file.write(bytes(length))
    nbd.qemu_compare(out, daemon.uri(volume))


def test_qemu_io_does_what_it_is_told(daemon: Daemon, volume: str) -> None:
    nbd.qemu_io(
        daemon.uri(volume),
        "write -P 0x11 -f 0 64k",
        "write -P 0x22 4095 3",
        "write -z 8k 4k",
        "write -z -u 16k 4k",
        "discard 24k 4k",
        "flush",
        "write -P 0x33 1048000 5000",
        "read -P 0x11 0 4095",
        "read -P 0x22 4095 3",
        "read -P 0 8k 4k",
        "read -P 0 16k 4k",
        "read -P 0 24k 4k",
        "read -P 0x33 1048000 5000",
    )
    failed = run("qemu-io", "-f", "raw", "-c", "read -P 0x44 0 512", daemon.uri(volume))
    assert "Pattern verification failed" in failed.out + failed.err, "this test could not fail"


def test_nbdsh_speaks_to_it(daemon: Daemon, volume: str) -> None:
    script = """
import os
data = os.urandom(100_000)
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at * 1_000_001) for at in range(32)]
while not all(h.aio_command_completed(c) for c in cookies):
    h.poll(1000)
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
    if not cookies:
        break
for at in range(32):
    assert h.pread(100_000, at * 1_000_001) == data
h.flush()
print(h.get_size())
"""
    out = check("nbdsh", "--uri", daemon.uri(volume), "--command", script)
    assert out.split() == [str(SIZE)]


def test_nbd_client_lists_the_exports(make_daemon: Callable[..., Daemon]) -> None:
    daemon, port = with_tcp(make_daemon)
    name = daemon.make_volume("v", size="8M", partition_size="1M")
    daemon.ok("snapshot", "create", name, "--name", "s")
    found = run("nbd-client", "-l", "127.0.0.1", port)
    assert {name, f"{name}@s"} <= set(found.out.split()), found


def with_tcp(make_daemon: Callable[..., Daemon]) -> tuple[Daemon, int]:
    """A daemon that serves on loopback too, and its port."""
    daemon = make_daemon("--nbd-listen", "127.0.0.1:0")
    for address in daemon.api.get("status")["daemon"]["nbd"]:
        if address.startswith("nbd://"):
            return daemon, int(address.rstrip("/").rpartition(":")[2])
    raise AssertionError("no TCP address in the status")


def test_the_same_is_served_by_tcp(make_daemon: Callable[..., Daemon], image: Path) -> None:
    daemon, port = with_tcp(make_daemon)
    daemon.make_volume("v", size="64M", partition_size="1M")
    nbd.copy(image, f"nbd://127.0.0.1:{port}/v", "--connections=2")
    nbd.qemu_compare(image, daemon.uri("v"))
    assert {export["export-name"] for export in listed(daemon).values()} == {"v"}


def test_the_empty_name_is_the_only_volume(daemon: Daemon) -> None:
    first = daemon.make_volume("v", size="8M", partition_size="1M")
    daemon.ok("snapshot", "create", first, "--name", "s")
    assert nbd.info(nbd.uri("", daemon.nbd_socket))["export-size"] == 8 * MIB
    with nbd.connect(nbd.uri("", daemon.nbd_socket)) as handle:
        handle.pwrite(b"here", 0)
    with nbd.connect(daemon.uri(first)) as handle:
        assert handle.pread(4, 0) == b"here"
    daemon.make_volume("w", size="8M", partition_size="1M")
    assert run("nbdinfo", nbd.uri("", daemon.nbd_socket)).rc != 0, "one of two was chosen"


def test_names_that_are_not_there_are_refused(daemon: Daemon, volume: str) -> None:
    daemon.ok("snapshot", "create", volume, "--name", "s")
    for name in ("nobody", "v@", "v@t", "@s", "v@s@s", "V", "v ", "x" * 4000, "é" * 100):
        result = run("nbdinfo", daemon.uri(name))
        assert result.rc != 0, f"{name!r} was served"
    assert nbd.info(daemon.uri(volume))["export-size"] == SIZE


def test_old_clients_are_served(daemon: Daemon, volume: str) -> None:
    """Without structured replies, without NBD_OPT_GO."""
    raw = nbd.nbd_handle()
    raw.set_request_structured_replies(False)
    raw.set_full_info(False)
    raw.connect_uri(daemon.uri(volume))
    raw.pwrite(b"plain" * 1000, 4090)
    assert raw.pread(5000, 4090) == b"plain" * 1000
    assert not raw.get_structured_replies_negotiated()
    raw.shutdown()
    old = nbd.nbd_handle()
    old.set_handshake_flags(0)
    old.connect_uri(daemon.uri(volume))
    assert old.pread(5000, 4090) == b"plain" * 1000
    old.shutdown()


def test_a_flush_on_one_connection_covers_the_others(daemon: Daemon, volume: str) -> None:
    """What multi-conn promises: seen at once on all, and kept by a flush on any, through a kill."""
    with nbd.connect(daemon.uri(volume)) as one, nbd.connect(daemon.uri(volume)) as other:
        assert one.can_multi_conn()
        for at in range(64):
            one.pwrite(os.urandom(1000), at * MIB + 77)
        assert other.pread(MIB, 0) == one.pread(MIB, 0)
        held = other.pread(16 * MIB, 0)
        other.flush()
        daemon.kill()
    daemon.start()
    with nbd.connect(daemon.uri(volume)) as handle:
        assert handle.pread(16 * MIB, 0) == held


def test_a_full_change_log_is_enospc_and_the_snapshot_stays(daemon: Daemon) -> None:
    daemon.add_devices("d", size="64M")
    daemon.add_devices("log", size="65M")
    place = ["--device", "d", "--log-device", "log", "--partition-size", "1M"]
    daemon.ok("volume", "create", "v", "--size", "32M", *place)
    image = random.Random(9).randbytes(32 * MIB)
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(image, 0)
        for turn in range(3):
            daemon.ok("snapshot", "create", "v", "--name", f"s{turn}")
            if turn < 2:
                handle.pwrite(image, 0)
        with pytest.raises(nbd.NbdError) as refused:
            handle.pwrite(image, 0)
        assert refused.value.errno == "ENOSPC"
        assert handle.pread(32 * MIB, 0) == image
        handle.zero(32 * MIB, 0)
        assert handle.pread(32 * MIB, 0) == bytes(32 * MIB)
    for turn in range(3):
        assert nbd.read_all(daemon.uri(f"v@s{turn}")) == image
        delete_when_unused(daemon, "v", f"s{turn}")
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(image, 0)
        assert handle.pread(32 * MIB, 0) == image


def test_a_short_answer_about_blocks_has_the_first_of_them(daemon: Daemon, volume: str) -> None:
    """QEMU asks for one extent of all that is left, whose other parts may be looked at first."""
    with nbd.connect(daemon.uri(volume)) as handle:
        for offset in range(0, SIZE, MIB):
            handle.pwrite(b"x" * MIB, offset)
        daemon.api.post("snapshots", body={"volumes": [volume], "name": "s"})
        handle.pwrite(b"y" * (8 * MIB), 0)
        found: list[int] = []

        def note(_: str, __: int, entries: list[int], ___: int) -> None:
            found.extend(entries)

        for offset in [*range(0, SIZE, MIB)] * 20:
            found.clear()
            handle.block_status(SIZE - offset, offset, note, libnbd.CMD_FLAG_REQ_ONE)
            assert len(found) == 2
