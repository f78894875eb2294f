"""test_restores: a volume is incomplete, and nobody's, until its restore has come to its end.

How it works      Volume `v` of one daemon is backed up; another restores it as `w`, by a `polyvol restore`
                  that is stopped at a point (support/held.py). There it is killed, or the daemon is, or
                  others try to write. Contents are compared by qemu-img over NBD.
"""

import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbd as libnbd
import pytest

from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.cli.client import ApiError
from polyvol.daemon.client.cli.restore import _opened, _request
from polyvol.mapping.errors import PolyvolError
from tests.support import nbd
from tests.support.daemon import BIN, Daemon, short_directory
from tests.support.held import Held
from tests.support.proc import wait_until

MIB = 1 << 20
SIZE = 46 * MIB
POINTS = [("connect", 0), ("pwrite", 0), ("pwrite", 9), ("completion", 0)]
"""Where a restore is stopped: it has begun; it has written nothing; some of it; all of it."""


@pytest.fixture
def files(daemon: Daemon, tmp_path: Path) -> list[Path]:
    """A full backup of v@s1, and an incremental one of v@s2."""
    daemon.make_volume("v", size="46M", partition_size="4M")
    write(daemon, "v", 1)
    daemon.api.post("snapshots", body={"volumes": ["v"], "name": "s1"})
    write(daemon, "v", 2, SIZE // 2)
    daemon.api.post("snapshots", body={"volumes": ["v"], "name": "s2"})
    daemon.ok("backup", "v@s1", "-o", tmp_path / "1.pv")
    daemon.ok("backup", "v@s2", "--since", "s1", "-o", tmp_path / "2.pv")
    return [tmp_path / "1.pv", tmp_path / "2.pv"]


@pytest.fixture
def other() -> Iterator[Daemon]:
    """Another daemon, to restore on."""
    with short_directory() as directory, Daemon(directory) as daemon:
        yield daemon


def write(daemon: Daemon, volume: str, seed: int, length: int = SIZE) -> None:
    """Write bytes that do not compress, from the start on."""
    with nbd.connect(daemon.uri(volume)) as handle:
        for offset in range(0, length, MIB):
            handle.pwrite(random.Random(seed + offset).randbytes(MIB), offset)
    wait_until(lambda: daemon.volume(volume)["connections"] == 0, "the client has left")


def prepared(other: Daemon, files: list[Path], kind: str) -> tuple[Path, str]:
    """The file to restore, and the snapshot that it makes; an incremental one's base is there."""
    if kind == "full":
        return files[0], "s1"
    other.ok("restore", files[0], "w")
    return files[1], "s2"


def held(other: Daemon, tmp_path: Path, point: str, passes: int, *arguments: str | Path) -> Held:
    """A restore that stops at a point."""
    return Held(other.state_dir, tmp_path / "held", point, "restore", *arguments, passes=passes)


def refuse_writers(other: Daemon) -> None:
    """Nobody gets at the volume, by any way."""
    assert other.volume("w")["state"] == "restoring"
    listed = nbd.export_names(other.nbd_socket)
    assert all(name != "w" and ":" not in name for name in listed)
    for name in ("w", ""):
        with pytest.raises(libnbd.Error), nbd.connect(other.uri(name)):
            pass
    for command in (
        ["snapshot", "create", "w", "--name", "x"],
        ["volume", "grow", "w", "--size", "96M"],
    ):
        assert "volume w is being restored from" in other.refused(*command)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "incremental"])
@pytest.mark.parametrize(("point", "passes"), POINTS)
def test_a_restore_that_is_killed_is_resumed_or_abandoned(
    daemon: Daemon, other: Daemon, files: list[Path], tmp_path: Path, kind: str, point: str, passes: int
) -> None:
    file, snapshot = prepared(other, files, kind)
    stranger = tmp_path / "stranger.pv"
    daemon.ok("backup", f"v@{snapshot}", *([] if kind == "full" else ["--since", "s1"]), "-o", stranger)
    with held(other, tmp_path, point, passes, file, "w") as command:
        refuse_writers(other)
        command.kill()
    wait_until(lambda: other.volume("w")["connections"] == 0, "the client has left")
    for end in (None, other.kill, other.stop):
        if end is not None:
            end()
        if not other.running:
            other.start()
        refuse_writers(other)
        for source, options in ((file, []), (stranger, []), (stranger, ["--resume"])):
            assert f"being restored from {file}" in other.refused("restore", source, "w", *options)
    other.ok("restore", file, "w", "--resume")
    nbd.qemu_compare(daemon.uri(f"v@{snapshot}"), other.uri(f"w@{snapshot}"))
    nbd.qemu_compare(daemon.uri(f"v@{snapshot}"), other.uri("w"))
    assert "already has what" in other.refused("restore", file, "w", "--resume")
    write(other, "w", 9, MIB)


@pytest.mark.parametrize("kind", ["full", pytest.param("incremental", marks=pytest.mark.slow)])
def test_an_abandoned_restore_leaves_what_was_before(
    daemon: Daemon, other: Daemon, files: list[Path], tmp_path: Path, kind: str
) -> None:
    file, snapshot = prepared(other, files, kind)
    with held(other, tmp_path, "pwrite", 9, file, "w") as command:
        for arguments in (["volume", "abandon-restore", "w"], ["restore", file, "w", "--resume"]):
            assert "a restore to volume w is running" in other.refused(*arguments)
        assert "in use by" in other.refused("volume", "delete", "w", "--yes")
        used = other.cli("in-use")
        assert (used.rc, "volume w is being restored" in used.out) == (1, True), used
        other.kill()
        other.start()
        other.ok("volume", "abandon-restore", "w")
        code, _ = command.go()
        assert code == 1
    if kind == "full":
        assert other.api.get("volumes") == []
    else:
        nbd.qemu_compare(daemon.uri("v@s1"), other.uri("w"))
        assert other.volume("w")["snapshots"] == ["s1"]
        other.restart()
        assert "cannot be resumed" in other.refused("restore", file, "w", "--resume")
    other.ok("restore", file, "w")
    nbd.qemu_compare(daemon.uri(f"v@{snapshot}"), other.uri(f"w@{snapshot}"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_a_daemon_that_is_killed_while_a_restore_is_completed_has_it_complete_or_not(
    daemon: Daemon, other: Daemon, files: list[Path], kind: str
) -> None:
    file, snapshot = prepared(other, files, kind)
    draw = random.Random(kind)
    outcomes = set()
    begun = begin(other, file)
    for turn in range(12):
        with nbd.connect(target(other, begun)) as handle, nbd.connect(daemon.uri(f"v@{snapshot}")) as whole:
            for offset in range(0, SIZE, MIB):
                handle.pwrite(whole.pread(MIB, offset), offset)
            handle.flush()
        thread = threading.Thread(target=complete, args=(other, begun))
        thread.start()
        thread.join(draw.uniform(0, 0.012))
        other.kill()
        thread.join()
        other.start()
        shown = other.volume("w")
        outcomes.add(shown["state"])
        if shown["state"] == "serving":
            assert snapshot in shown["snapshots"], turn
            break
        assert snapshot not in shown["snapshots"]
        refuse_writers(other)
        begun = begin(other, file, resume=True)
    else:
        complete(other, begun)
    for export in ("w", f"w@{snapshot}"):
        nbd.qemu_compare(daemon.uri(f"v@{snapshot}"), other.uri(export))


def begin(other: Daemon, file: Path, *, resume: bool = False) -> Any:
    """Begin a restore by the API, as the command does."""
    with _opened(str(file)) as stream:
        return other.api.post("restores", body=_request(stream, "w", {}, resume=resume))


def target(other: Daemon, begun: Any) -> str:
    """The address of the export that a restore was given."""
    return parse_uri(other.api.get("status")["daemon"]["nbd"][0], begun["export"]).uri


def complete(other: Daemon, begun: Any) -> None:
    """Complete the restore; the daemon may be killed during it."""
    with suppress(ApiError, PolyvolError):
        other.api.post("volumes", "w", "restore", "completion", body={"export": begun["export"]})


@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.slow), "incremental"])
def test_a_host_that_tries_again_and_again_gets_the_volume_when_it_is_complete(
    daemon: Daemon, other: Daemon, files: list[Path], tmp_path: Path, kind: str
) -> None:
    file, snapshot = prepared(other, files, kind)
    stop = threading.Event()
    refused, wrote = [], []

    def host() -> None:
        while not stop.is_set():
            try:
                with nbd.connect(other.uri("w")) as handle:
                    handle.pwrite(b"!" * 4096, MIB)
                    wrote.append(1)
            except libnbd.Error:
                refused.append(1)

    with held(other, tmp_path, "pwrite", 3, file, "w") as command:
        thread = threading.Thread(target=host)
        thread.start()
        try:
            wait_until(lambda: len(refused) > 20, "the host to be refused")
            assert not wrote
            assert command.go()[0] == 0
            wait_until(lambda: len(wrote) > 2, "the host to have the volume")
        finally:
            stop.set()
            thread.join()
    nbd.qemu_compare(daemon.uri(f"v@{snapshot}"), other.uri(f"w@{snapshot}"))


@pytest.mark.slow
def test_only_a_restore_is_resumed(daemon: Daemon, other: Daemon, files: list[Path]) -> None:
    other.make_volume("w", size="46M", partition_size="4M")
    write(other, "w", 5)
    before = nbd.read_all(other.uri("w"))
    assert "exists already; name a new volume\n" in other.refused("restore", files[0], "w")
    assert "cannot be resumed" in other.refused("restore", files[0], "w", "--resume")
    assert "follows snapshot s1" in other.refused("restore", files[1], "w", "--resume")
    for options in ([], ["--resume"]):
        words = "which volume new does not have; restore the backup of that snapshot first"
        assert words in other.refused("restore", files[1], "new", *options)
    assert nbd.read_all(other.uri("w")) == before
    assert other.volume("w")["state"] == "serving"


@pytest.mark.slow
def test_a_backup_file_may_have_any_name(other: Daemon, files: list[Path]) -> None:
    file = files[0].rename(files[0].with_name(os.fsdecode(b"\xff.pv")))
    other.ok("restore", file, "w")
    assert "\ufffd.pv is a full backup, and volume w exists already" in other.refused("restore", file, "w")


@pytest.mark.slow
def test_a_full_backup_from_a_pipe_that_ends_early_is_not_called_done(
    daemon: Daemon, other: Daemon, files: list[Path]
) -> None:
    data = files[0].read_bytes()
    for broken in (data[: len(data) // 2], data[:-1], data + b"x", data[:-10] + b"x" + data[-9:]):
        told = subprocess.run(
            [BIN / "polyvol", "restore", "-", "w"],
            input=broken,
            env={"POLYVOL_STATE": str(other.state_dir), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert told.returncode == 1
        assert b"cannot be restored" in told.stderr
        assert other.api.get("volumes") == []


@pytest.mark.slow
def test_a_pipe_that_was_interrupted_goes_on_with_the_same_stream(
    daemon: Daemon, other: Daemon, files: list[Path]
) -> None:
    data = files[0].read_bytes()
    command = [str(BIN / "polyvol"), "restore", "-", "w"]
    env = {"POLYVOL_STATE": str(other.state_dir), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as running:
        assert running.stdin is not None
        running.stdin.write(data[: len(data) // 2])
        wait_until(lambda: has_client(other), "the restore to write")
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    assert other.volume("w")["restore"]["source"] == "the standard input"
    refuse_writers(other)
    with files[0].open("rb") as file:
        subprocess.run([*command, "--resume"], stdin=file, env=env, check=True, timeout=60)
    nbd.qemu_compare(daemon.uri("v@s1"), other.uri("w@s1"))


def has_client(other: Daemon) -> bool:
    """Whether the volume is there, and a restore writes it."""
    found = {each["name"]: each["connections"] for each in other.api.get("volumes")}
    return bool(found.get("w", 0))


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--frontend", "nbdkit"], ["--nbd-listen", "127.0.0.1:0"]])
def test_a_restore_by_other_ways(
    daemon: Daemon, make_daemon: Callable[..., Daemon], files: list[Path], options: list[str], tmp_path: Path
) -> None:
    """Through nbdkit; and the hidden export by TCP."""
    other = make_daemon(*options)
    for file in files:
        with Held(other.state_dir, tmp_path / f"h{file.stem}", "pwrite", "restore", file, "w") as command:
            refuse_writers(other)
            assert command.go() == (0, "")
    for snapshot in ("s1", "s2"):
        nbd.qemu_compare(daemon.uri(f"v@{snapshot}"), other.uri(f"w@{snapshot}"))
    if options[0] == "--nbd-listen":
        other.api.delete("volumes", "w")
        begun = begin(other, files[0])
        address = next(uri for uri in other.api.get("status")["daemon"]["nbd"] if uri.startswith("nbd:"))
        with nbd.connect(parse_uri(address, begun["export"]).uri) as handle:
            assert handle.get_size() == SIZE


@pytest.mark.slow
def test_a_completion_waits_until_nbdkit_has_ended_the_connection(
    make_daemon: Callable[..., Daemon], files: list[Path]
) -> None:
    """nbdkit may take a moment after the client has closed it; what is still being written is refused."""
    other = make_daemon("--frontend", "nbdkit")
    begun = begin(other, files[0])

    def finish() -> None:
        other.api.post("volumes", "w", "restore", "completion", body={"export": begun["export"]})

    with nbd.connect(target(other, begun)) as handle:
        handle.pwrite(b"x", 0)
        with pytest.raises(ApiError, match="with 1 client connected"):
            finish()
        finishing = threading.Thread(target=finish)
        finishing.start()
        finishing.join(0.5)
        assert finishing.is_alive()
    finishing.join(10)
    assert other.volume("w")["state"] != "restoring"


@pytest.mark.slow
def test_a_volume_that_grew_takes_what_its_source_was_backed_up_as_later(
    daemon: Daemon, other: Daemon, files: list[Path], tmp_path: Path
) -> None:
    other.ok("restore", files[0], "w")
    daemon.ok("volume", "grow", "v", "--size", "64M")
    daemon.api.post("snapshots", body={"volumes": ["v"], "name": "s3"})
    daemon.ok("backup", "v@s3", "--since", "s1", "-o", tmp_path / "3.pv")
    assert "has" in other.refused("restore", tmp_path / "3.pv", "w")
    other.ok("volume", "grow", "w", "--size", "64M")
    other.ok("restore", tmp_path / "3.pv", "w")
    nbd.qemu_compare(daemon.uri("v@s3"), other.uri("w@s3"))
