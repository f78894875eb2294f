"""test_journals: a volume whose journals are missing, damaged or older is not served, and not changed.

How it works      A daemon serves a volume whose blocks went to a change log, and is stopped or killed. Then
                  something is done to the files of its journals. `polyvol check` finds it before a start; the
                  start says why the volume is not served, and changes nothing of it; so check finds it
                  afterwards. When the files are put back, everything is there.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, flip
from tests.support.nbd import connect

MIB = 1 << 20
NEW = b"NEW!" * 1024


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    """A volume `v` with a snapshot `s`, and a block that was written after it and flushed."""
    daemon.ok("volume", "create", "v", "--size", "2M", "--partition-size", "1M", "--processors", "1")
    daemon.ok("snapshot", "create", "v", "--name", "s0")
    with connect(daemon.uri("v")) as host:
        host.pwrite(NEW, 0)
        host.flush()
    daemon.ok("snapshot", "create", "v", "--name", "s")
    return daemon


def files(daemon: Daemon) -> dict[str, str]:
    """What the engine has of its volumes, by name."""
    state = daemon.state_dir
    paths = [path for folder in ("volumes", "manifests") for path in sorted((state / folder).rglob("*"))]
    return {
        str(path.relative_to(state)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def only(daemon: Daemon, pattern: str) -> Path:
    """The newest file or directory of this pattern."""
    return sorted(daemon.state_dir.glob(pattern))[-1]


def refused(daemon: Daemon, names: str) -> None:
    """The volume is not served because what `names` says is missing; check finds it before and after."""
    before = files(daemon)
    found = daemon.cli("check", "--data")
    assert found.rc == 1
    assert names in found.out
    daemon.start()
    assert daemon.json("volume", "list")[0]["state"] == "not-served"
    assert names in daemon.said()
    assert "is not served: the journals of volume v cannot be used" in daemon.said()
    daemon.stop()
    assert files(daemon) == before
    again = daemon.cli("check", "--data")
    assert again.rc == 1
    assert names in again.out


def right(daemon: Daemon) -> None:
    """Everything is there."""
    daemon.start()
    for export in ("v", "v@s"):
        with connect(daemon.uri(export)) as host:
            assert host.pread(len(NEW), 0) == NEW
    with connect(daemon.uri("v@s0")) as host:
        assert host.pread(len(NEW), 0) == bytes(len(NEW))
    daemon.stop()
    assert daemon.cli("check", "--data").rc == 0


DAMAGE: dict[str, tuple[Callable[[Daemon], None], str]] = {
    "header": (lambda daemon: flip(only(daemon, "volumes/*/p000-*.journal"), 13), ".journal"),
    "mark": (lambda daemon: flip(only(daemon, "volumes/*/p000-*.journal"), 512), ".journal"),
    "record": (lambda daemon: flip(only(daemon, "volumes/*/p000-*.journal"), 4096 + 60), ".journal"),
    "segment": (lambda daemon: only(daemon, "volumes/*/p000-*.journal").unlink(), ""),
    "directory": (lambda daemon: shutil.rmtree(only(daemon, "volumes/*")), "volumes/"),
    "manifest": (lambda daemon: only(daemon, "manifests/*/p000.manifest").unlink(), "p000.manifest"),
    "manifests": (lambda daemon: shutil.rmtree(daemon.state_dir / "manifests"), "p000.manifest"),
    "copy": (lambda daemon: flip(only(daemon, "manifests/*/p000.manifest"), 520), "p000.manifest"),
    "count": (lambda daemon: flip(only(daemon, "manifests/*/p000.manifest"), 4097), "p000.manifest"),
}
QUICK = ("directory",)


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what in QUICK else pytest.mark.slow) for what in DAMAGE]
)
def test_a_killed_volume_with_damaged_or_missing_files_is_not_served(
    used: Daemon, tmp_path: Path, what: str
) -> None:
    used.kill()
    shutil.copytree(used.state_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock", "devices"))
    damage, names = DAMAGE[what]
    damage(used)
    refused(used, names)
    for folder in ("volumes", "manifests"):
        shutil.rmtree(used.state_dir / folder, ignore_errors=True)
        shutil.copytree(tmp_path / "copy" / folder, used.state_dir / folder)
    right(used)


PATTERNS = {"checkpoint": "volumes/*/*.checkpoint", "directory": "volumes/*", "manifest": "manifests/*/*"}


@pytest.mark.slow
@pytest.mark.parametrize("what", PATTERNS)
def test_a_stopped_volume_with_missing_files_is_not_served(used: Daemon, what: str) -> None:
    used.stop()
    path = only(used, PATTERNS[what])
    away = used.state_dir.parent / "away"
    shutil.move(path, away)
    refused(used, path.name)
    shutil.move(away, path)
    right(used)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_an_older_directory_of_a_volume_is_not_served(used: Daemon, tmp_path: Path, end: str) -> None:
    used.stop()
    directory = only(used, "volumes/*")
    shutil.copytree(directory, tmp_path / "older")
    used.start()
    with connect(used.uri("v")) as host:
        host.pwrite(b"2" * 4096, 4096)
        host.flush()
    (used.stop if end == "stop" else used.kill)()
    shutil.copytree(directory, tmp_path / "newest")
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "older", directory)
    refused(used, directory.name)
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "newest", directory)
    right(used)


def test_a_volume_that_is_refused_can_be_deleted(used: Daemon) -> None:
    used.kill()
    shutil.rmtree(only(used, "volumes/*"))
    used.start()
    used.ok("volume", "delete", "v", "--yes")
    used.stop()
    assert files(used) == {}
    assert used.cli("check").rc == 0


@pytest.mark.slow
def test_journals_and_manifests_of_an_earlier_stop_are_told(used: Daemon) -> None:
    """Put back together they agree with each other, and with the catalog, as no snapshot was taken since."""
    used.stop()
    state = used.state_dir
    copies = {folder: used.directory / f"copy-{folder}" for folder in ("volumes", "manifests")}
    newest = {folder: used.directory / f"newest-{folder}" for folder in copies}
    for folder, copy in copies.items():
        shutil.copytree(state / folder, copy)
    used.start()
    with connect(used.uri("v")) as host:
        host.pwrite(b"LATE" * 1024, 0)
        host.flush()
    used.stop()
    for folder, copy in copies.items():
        (state / folder).rename(newest[folder])
        shutil.copytree(copy, state / folder)
    refused(used, "is not the one that the last clean stop left")
    used.stop()
    used.start()  # a second start does not take them either
    assert used.volume("v")["state"] == "not-served"
    used.stop()
    for folder in copies:
        shutil.rmtree(state / folder)
        newest[folder].rename(state / folder)
    used.restart()
    with connect(used.uri("v")) as host:
        assert host.pread(4096, 0) == b"LATE" * 1024
