"""test_cli_errors: what the command line refuses, and what it tells, on a real daemon with real clients.

How it works      Each refusal is one sentence and exit code 1 (usage: 2), and nothing has changed after it.
                  The unit tests have the finer cases, with the engine's twin.
"""

import os
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import BIN, Daemon
from tests.support.proc import run

MIB = 1 << 20


@pytest.mark.slow
def test_what_cannot_be_done_is_refused_and_nothing_changes(daemon: Daemon) -> None:
    volume = daemon.make_volume("v", size="8M", partition_size="1M")
    daemon.add_devices("small", size="4M")
    daemon.ok("snapshot", "create", volume, "--name", "s")
    before = daemon.everything()
    path = daemon.directory / "new.img"
    for words, command in [
        ("exists", ["volume", "create", "v", "--size", "8M"]),
        ("a size of 0 B", ["volume", "create", "w", "--size", "0"]),
        ("multiple of 4 KiB", ["volume", "create", "w", "--size", "5000"]),
        ("and small has 3 MiB free", ["volume", "create", "w", "--size", "8M", "--device", "small"]),
        ("no device", ["volume", "create", "w", "--size", "8M", "--device", "nobody"]),
        ("no volume", ["volume", "show", "nobody"]),
        ("no volume", ["volume", "delete", "nobody", "--yes"]),
        ("--yes", ["volume", "delete", "v"]),
        ("no volume", ["snapshot", "create", "nobody"]),
        ("no volume", ["snapshot", "create", "v", "nobody", "--name", "t"]),
        ("no volume", ["snapshot", "list", "nobody"]),
        ("exists", ["snapshot", "create", "v", "--name", "s"]),
        ("no snapshot", ["snapshot", "show", "v@t"]),
        ("no snapshot", ["snapshot", "delete", "v@t"]),
        ("VOLUME@SNAPSHOT", ["snapshot", "delete", "v"]),
        ("no device", ["snapshot", "create", "v", "--log-device", "nobody"]),
        ("used by volume v", ["device", "remove", "v-0"]),
        ("no device", ["device", "remove", "nobody"]),
        ("no device", ["device", "show", "nobody"]),
        ("does not exist", ["device", "add", str(path)]),
        ("exists", ["device", "add", str(path), "--name", "small", "--size", "4M"]),
        ("already", ["device", "add", str(daemon.directory / "small.img"), "--name", "again"]),
    ]:
        said = daemon.refused(*command)
        assert words in said, f"{command}: {said}"
        assert len(said.strip().splitlines()) == 1, said
    assert daemon.everything() == before
    assert not path.exists()


@pytest.mark.parametrize(
    "name",
    [
        "a\x1bb",
        "-v",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("a/b", "a@b", "a\nb", "", ".", "..", "x" * 65, "é")
        ),
    ],
)
def test_names_that_would_harm_are_refused(daemon: Daemon, name: str) -> None:
    daemon.make_volume("v", size="8M", partition_size="1M")
    for command in (
        ["volume", "create", "--size", "8M", "--", name],
        ["snapshot", "create", f"--name={name}", "v"],
        ["device", "add", str(daemon.directory / "d"), f"--name={name}", "--size", "8M"],
    ):
        said = daemon.refused(*command)
        assert "is not allowed" in said, said
        assert "\x1b" not in said
    assert nbd.export_names(daemon.nbd_socket) == {"v"}


def test_a_backup_is_not_written_among_polyvold_s_own_files(daemon: Daemon, short_dir: Path) -> None:
    daemon.make_volume("v", size="8M", partition_size="1M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    (short_dir / "link").symlink_to(daemon.state_dir / "volumes")
    before = sorted(daemon.state_dir.rglob("*"))
    for place in (daemon.state_dir / "volumes", daemon.state_dir / "devices", short_dir / "link"):
        said = daemon.refused("backup", "v@s", "-o", place / "b")
        assert f"it would be among polyvold's own files in {daemon.state_dir}; give a path elsewhere" in said
    assert sorted(daemon.state_dir.rglob("*")) == before


def test_what_a_client_uses_is_not_deleted(daemon: Daemon) -> None:
    daemon.make_volume("v", size="8M", partition_size="1M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    with nbd.connect(daemon.uri("v@s")) as handle:
        assert "in use by 1 client" in daemon.refused("snapshot", "delete", "v@s")
        assert "in use by 1 client" in daemon.refused("volume", "delete", "v", "--yes")
        assert handle.pread(1, 0) == b"\0"
    with nbd.connect(daemon.uri("v")) as handle:
        assert "in use" in daemon.refused("volume", "delete", "v", "--yes")
        handle.pwrite(b"on", 0)
        assert daemon.json("volume", "show", "v")["connections"] == 1


def test_usage_errors_exit_with_2(daemon: Daemon) -> None:
    for command in (["volume"], ["volume", "create"], ["nothing"], ["snapshot", "create"], ["status", "--x"]):
        result = daemon.cli(*command)
        assert result.rc == 2, f"{command} gave {result.rc}: {result.out}{result.err}"
        assert "Traceback" not in result.err
    assert daemon.cli("volume", "create", "w", "--size", "much").rc == 2


def test_a_second_polyvold_is_refused(daemon: Daemon) -> None:
    daemon.make_volume("v", size="8M", partition_size="1M")
    second = run(BIN / "polyvold", "--state-dir", daemon.state_dir)
    assert second.rc == 1
    assert "Traceback" not in second.err
    assert second.err.strip()
    assert nbd.info(daemon.uri("v"))["export-size"] == 8 * MIB
    assert (daemon.nbd_socket.stat().st_mode & 0o777) == 0o600
    assert (daemon.control_socket.stat().st_mode & 0o777) == 0o600


def test_json_tells_bytes_and_names(daemon: Daemon) -> None:
    daemon.make_volume("v", size="8M", partition_size="1M")
    daemon.add_devices("extra", size="100M")
    daemon.ok("snapshot", "create", "v", "--name", "s", "--log-device", "extra")
    volumes = daemon.json("volume", "list")
    assert [(each["name"], each["size"], each["snapshots"]) for each in volumes] == [("v", 8 * MIB, ["s"])]
    shown = daemon.json("volume", "show", "v", "--partitions")
    assert len(shown["partitions"]) == shown["partition_count"] == 8
    assert {part["processor"] for part in shown["partitions"]} == {0, 1}
    assert all(sum(extent["length"] for extent in part["extents"]) == MIB for part in shown["partitions"])
    assert {extent["device"] for part in shown["partitions"] for extent in part["extents"]} == {"v-0", "v-1"}
    snapshot = daemon.json("snapshot", "show", "v@s", "--partitions")
    assert snapshot["export"] == "v@s"
    assert snapshot["log_devices"] == ["extra"]
    assert snapshot["stall_ns"] > 0
    assert [part["partition"] for part in snapshot["partitions"]] == list(range(8))
    assert daemon.json("device", "show", "extra")["volumes"] == ["v"]
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(os.urandom(2 * MIB), 0)
    logs = {log["devices"][0]: log for log in daemon.json("volume", "show", "v")["logs"]}
    assert logs["extra"]["used"] == 2 * MIB
    assert logs["v-log"]["used"] == 0
    for text in (daemon.ok("volume", "list"), daemon.ok("status"), daemon.ok("volume", "show", "v")):
        assert "8 MiB" in text


def test_an_adopted_image_is_the_base_and_changes_in_place(daemon: Daemon, tmp_path: Path) -> None:
    image = tmp_path / "raw.img"
    data = os.urandom(8 * MIB)
    image.write_bytes(data)
    daemon.ok("device", "add", image, "--name", "raw", "--adopt")
    allocated = image.stat().st_blocks  # with the block that holds the extended attribute
    daemon.ok("volume", "create", "v", "--base", "raw", "--partition-size", "1M")
    assert image.read_bytes() == data, "adopting it has changed it"
    assert nbd.read_all(daemon.uri("v")) == data
    with nbd.connect(daemon.uri("v")) as handle:
        handle.pwrite(b"in place", 12345)
        handle.flush()
        assert image.read_bytes()[12345:12353] == b"in place"
        daemon.ok("snapshot", "create", "v", "--name", "s")
        handle.pwrite(b"elsewhere", 12345)
        handle.flush()
        assert image.read_bytes()[12345:12353] == b"in place"
        with nbd.connect(daemon.uri("v@s")) as snapshot:
            assert snapshot.pread(8, 12345) == b"in place"
    assert image.stat().st_blocks <= allocated
    assert image.stat().st_size == 8 * MIB
