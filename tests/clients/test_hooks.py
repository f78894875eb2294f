"""Hooks when polyvold itself is killed or stopped: nothing of them outlives it, and what is owed is run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import BIN, Daemon
from tests.support.proc import wait_until


@pytest.fixture(params=["native", pytest.param("nbdkit", marks=pytest.mark.slow)])
def daemon(make_daemon: Callable[..., Daemon], request: pytest.FixtureRequest) -> Daemon:
    """A daemon with each front-end: in nbdkit hooks are run by nbdkit's process."""
    return make_daemon("--frontend", request.param)


@pytest.fixture
def notes(daemon: Daemon) -> Path:
    """A volume v whose quiesce command leaves a session of its own and hangs; what its hooks note."""
    path = daemon.directory / "notes"
    quiesce = f"setsid sleep 600 & echo $! $$ >> {path}; sleep 600"
    daemon.ok("volume", "create", "v", "--size", "1M")
    hooks = {"quiesce": quiesce, "thaw": f"echo thaw >> {path}", "timeout_s": 600, "shell": True}
    daemon.api.patch("volumes", "v", body={"hooks": hooks})
    daemon.api.post("schedules", body={"target": "v", "every_s": 1, "keep": {"last": 1}, "name": "often"})
    wait_until(lambda: path.exists() and len(path.read_text().split()) == 2, "the quiesce command", 20)
    return path


def test_hooks_make_a_snapshot_consistent(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("volume", "set", "v", "--quiesce", "/bin/true", "--thaw", "/bin/true")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    [shown] = daemon.snapshots("v")
    assert (shown["consistency"], shown["hook_trouble"]) == ("application", None)


def _ended(notes: Path) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in notes.read_text().split()[:2])


@pytest.mark.slow
def test_a_kill_ends_the_hooks_and_the_next_start_thaws(daemon: Daemon, notes: Path) -> None:
    daemon.kill()
    wait_until(lambda: _ended(notes), "the end of what the hook had started", 10)
    assert "thaw" not in notes.read_text()
    daemon.start()
    wait_until(lambda: "thaw" in notes.read_text(), "the thaw", 10)
    daemon.api.delete("schedules", "often")


def test_a_stop_ends_the_hooks_and_thaws(daemon: Daemon, notes: Path) -> None:
    daemon.stop()
    assert _ended(notes)
    assert notes.read_text().split()[2:] == ["thaw"]


@pytest.mark.parametrize(
    "command",
    ["polyvol", "setsid polyvol", pytest.param("env -i {path} polyvol", marks=pytest.mark.slow)],
)
def test_a_hook_that_asks_for_a_snapshot_with_hooks_is_refused(daemon: Daemon, command: str) -> None:
    daemon.make_volume("v")
    daemon.make_volume("w")
    command = command.format(path='PATH="$PATH" POLYVOL_STATE="$POLYVOL_STATE"')
    asks = f"PATH={BIN}:$PATH; {command} snapshot create"
    body = {"quiesce": f"{asks} w && {asks} v", "thaw": None, "timeout_s": 60, "shell": True}
    daemon.api.patch("volumes", "v", body={"hooks": body})
    (taken,) = daemon.api.post("snapshots", body={"volumes": ["v"], "name": "one"})
    assert "volume v has hooks" in taken["hook_trouble"]
    assert [each["name"] for each in daemon.snapshots("v")] == ["one"]
    assert len(daemon.snapshots("w")) == 1, "w has no hooks: nothing waits for itself"


@pytest.mark.parametrize("stage", ["quiesce", pytest.param("thaw", marks=pytest.mark.slow)])
def test_a_schedule_s_hook_that_asks_for_a_snapshot_of_its_volume_is_refused(
    daemon: Daemon, stage: str
) -> None:
    said = daemon.directory / "said"
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("volume", "create", "w", "--size", "1M")
    asks = f"PATH={BIN}:$PATH; polyvol snapshot create v w 2>> {said}"
    hooks = {"quiesce": "true", "thaw": None, "timeout_s": 60, "shell": True} | {stage: asks}
    wanted = {"target": "v", "every_s": 1, "keep": {"last": 1}, "name": "often", "hooks": hooks}
    daemon.api.post("schedules", body=wanted)
    wait_until(lambda: said.exists() and "\n" in said.read_text(), "the refusal", 20)
    daemon.api.delete("schedules", "often")
    assert "volume v has hooks under way, and a hook command cannot take a snapshot of it" in said.read_text()
    assert daemon.snapshots("w") == []
