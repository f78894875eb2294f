"""Hooks: what is run around a cut, in which order, and that nothing stays quiesced or hangs."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from polyvol.daemon.hooks.run import CONCURRENT_MAX
from tests.support.proc import has_ended, wait_until
from tests.unit.conftest import Daemon

THAW_FAILED = "ended with 5: mount is busy"


class Hooked:
    """A daemon with a volume, and scripts that write down that they were run."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self.daemon = daemon
        self.directory = directory
        self.notes = directory / "notes"
        daemon.ok("volume", "create", "v", "--size", "1M")
        daemon.ok("volume", "create", "w", "--size", "1M")

    def script(self, name: str, text: str = "") -> str:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\necho $POLYVOL_STAGE {name} >> {self.notes}\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def said(self, *arguments: str) -> Any:
        return json.loads(self.daemon.ok(*arguments, "--json"))

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def warnings(self) -> str:
        return "\n".join(each["text"] for each in self.said("status")["events"] if each["level"] == "warning")

    def mark(self, name: str = "v@s") -> str:
        return str(self.said("snapshot", "show", name)["consistency"])

    def owed(self) -> int:
        return len(self.daemon.service._context.catalog.hooks.thaws_owed())


@pytest.fixture
def hooked(daemon: Daemon, tmp_path: Path) -> Hooked:
    return Hooked(daemon, tmp_path)


def test_a_cut_between_quiesce_and_thaw_is_application_consistent(hooked: Hooked) -> None:
    env = f"env | grep POLYVOL_ > {hooked.directory}/env"
    thaw = hooked.script("thaw", f"env | grep POLYVOL_ > {hooked.directory}/thaw-env")
    arguments = ["--quiesce", f"{hooked.script('quiesce', env)} x", "--thaw", thaw]
    said = hooked.daemon.ok("volume", "set", "v", *arguments)
    assert "hooks: quiesce" in said
    hooked.daemon.ok("snapshot", "create", "v", "--name", "s")
    assert hooked.noted() == ["quiesce quiesce", "thaw thaw"]
    assert hooked.mark() == "application"
    assert "application-consistent" in hooked.daemon.ok("snapshot", "show", "v@s")
    assert set((hooked.directory / "env").read_text().splitlines()) == {
        "POLYVOL_STAGE=quiesce",
        f"POLYVOL_STATE={hooked.daemon.state_dir}",
        "POLYVOL_VOLUMES=v",
        "POLYVOL_SNAPSHOT=s",
        "POLYVOL_GROUP=",
        "POLYVOL_SCHEDULE=",
    }
    assert "POLYVOL_STAGE=thaw" in (hooked.directory / "thaw-env").read_text()
    assert hooked.owed() == 0
    hooked.daemon.ok("snapshot", "create", "w", "--name", "s")
    assert hooked.mark("w@s") == "crash"
    assert hooked.said("snapshot", "show", "w@s")["hook_trouble"] is None


def test_a_quiesce_that_fails_is_thawed_and_the_snapshot_is_taken(hooked: Hooked) -> None:
    quiesce, thaw = hooked.script("quiesce", "echo no such mount >&2; exit 3"), hooked.script("thaw")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", quiesce, "--thaw", thaw)
    hooked.daemon.ok("snapshot", "create", "v", "--name", "s")
    assert hooked.noted() == ["quiesce quiesce", "thaw thaw"]
    assert hooked.mark() == "crash"
    assert "ended with 3: no such mount" in hooked.said("snapshot", "show", "v@s")["hook_trouble"]
    assert "ended with 3: no such mount" in hooked.warnings()


def test_a_quiesce_that_hangs_is_killed_with_all_it_started(hooked: Hooked) -> None:
    pid = hooked.directory / "pid"
    quiesce = hooked.script("quiesce", f"trap '' TERM; sleep 600 & echo $! > {pid}; wait")
    hooked.daemon.ok(
        "volume", "set", "v", "--quiesce", quiesce, "--thaw", hooked.script("thaw"), "--hook-timeout", "1s"
    )
    began = time.monotonic()
    hooked.daemon.ok("snapshot", "create", "v", "--name", "s")
    assert 1 <= time.monotonic() - began < 10
    assert hooked.noted() == ["quiesce quiesce", "thaw thaw"]
    assert "did not end within 1 s and was killed" in hooked.said("snapshot", "show", "v@s")["hook_trouble"]
    child = int(pid.read_text())
    wait_until(lambda: has_ended(child), "the end of what the hook had started", 10)


def test_a_cut_that_comes_too_late_is_crash_consistent_and_nothing_stays_quiesced(hooked: Hooked) -> None:
    go = hooked.directory / "go"
    quiesce = hooked.script("quiesce", f"while [ ! -e {go} ]; do sleep 0.02; done")
    thaw = hooked.script("thaw")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", quiesce, "--thaw", thaw, "--hook-timeout", "2s")
    context = hooked.daemon.service._context
    taking = threading.Thread(
        target=hooked.daemon.run, args=("snapshot", "create", "v", "--name", "s"), daemon=True
    )
    taking.start()
    wait_until(lambda: hooked.noted() == ["quiesce quiesce"], "the quiesce", 10)
    with context.holding("v", "this test"):  # somebody else changes it for long
        go.touch()
        wait_until(lambda: hooked.noted() == ["quiesce quiesce", "thaw thaw"], "the thaw", 10)
    taking.join(10)
    assert hooked.mark() == "crash"
    assert "was quiesced for 2 s" in hooked.said("snapshot", "show", "v@s")["hook_trouble"]
    assert len(hooked.noted()) == 2


@pytest.mark.slow
def test_a_thaw_that_hangs_holds_up_nobody_else(hooked: Hooked) -> None:
    quiesce, thaw = hooked.script("quiesce"), hooked.script("thaw", "sleep 600")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", quiesce, "--thaw", thaw, "--hook-timeout", "2s")
    taking = threading.Thread(
        target=hooked.daemon.run, args=("snapshot", "create", "v", "--name", "s"), daemon=True
    )
    taking.start()
    wait_until(lambda: len(hooked.noted()) == 2, "the thaw", 10)
    began = time.monotonic()
    hooked.daemon.ok("snapshot", "create", "w")
    assert time.monotonic() - began < 1.5
    taking.join(10)
    assert hooked.mark() == "application"
    assert "thaw command of volume v did not end within 2 s" in hooked.warnings()


def test_a_thaw_that_fails_is_run_again_and_owed_until_it_succeeds(hooked: Hooked) -> None:
    works = hooked.directory / "works"
    thaw = hooked.script("thaw", f"test -e {works} || {{ echo no connection; exit 1; }}")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", hooked.script("quiesce"), "--thaw", thaw)
    hooked.daemon.ok("snapshot", "create", "v", "--name", "s")
    assert hooked.noted() == ["quiesce quiesce", "thaw thaw", "thaw thaw"]
    assert (hooked.mark(), hooked.owed()) == ("application", 1)
    assert "of volume v ended with 1: no connection; it is run again when polyvold" in hooked.warnings()
    works.touch()
    hooked.daemon.restart()
    wait_until(lambda: hooked.owed() == 0, "the thaw", 10)
    assert len(hooked.noted()) == 4


def test_a_cut_that_fails_is_thawed(hooked: Hooked) -> None:
    hooked.daemon.ok("volume", "set", "v", "--quiesce", hooked.script("q"), "--thaw", hooked.script("t"))
    hooked.daemon.world.fail["cut"] = 0
    hooked.daemon.refused("snapshot", "create", "v", "--name", "s")
    assert hooked.noted() == ["quiesce q", "thaw t"]
    assert hooked.owed() == 0


@pytest.mark.slow
def test_a_group_and_a_schedule_quiesce_all_and_thaw_backwards(hooked: Hooked) -> None:
    daemon = hooked.daemon
    daemon.ok("group", "create", "g", "v", "w")
    daemon.ok("volume", "set", "v", "--quiesce", hooked.script("qv"), "--thaw", hooked.script("tv"))
    daemon.ok("volume", "set", "w", "--quiesce", hooked.script("qw", "exit 1"))
    quiesce, thaw = hooked.script("qs"), hooked.script("ts")
    arguments = ["--every", "1s", "--keep", "last=1", "--quiesce", quiesce, "--thaw", thaw]
    daemon.ok("schedule", "add", "@g", *arguments)
    wait_until(lambda: hooked.said("snapshot", "list", "@g") != [], "a scheduled snapshot", 20)
    daemon.ok("schedule", "pause", "g-auto")
    assert hooked.noted()[:3] == ["quiesce qs", "quiesce qv", "quiesce qw"]
    [whole] = hooked.said("snapshot", "list", "@g")
    assert whole["consistency"] == "crash"
    assert [each["consistency"] for each in whole["members"]] == ["application", "crash"]
    assert hooked.said("schedule", "show", "g-auto")["hooks"]["quiesce"] == quiesce
    daemon.service.schedules.wait()


def test_a_thaw_that_is_owed_is_run_at_the_next_start(hooked: Hooked) -> None:
    thaw = hooked.script("thaw")
    catalog = hooked.daemon.service._context.catalog
    call = {"what": "volume v", "arguments": [thaw], "environment": {"POLYVOL_STAGE": "thaw"}, "timeout_s": 5}
    catalog.hooks.owe_thaw(call)
    hooked.daemon.restart()
    wait_until(lambda: hooked.owed() == 0, "the thaw", 10)
    assert hooked.noted() == ["thaw thaw"]
    assert "the thaw command of volume v has not succeeded yet: it is run now" in hooked.warnings()


def test_a_stop_does_not_wait_for_a_quiesce_that_hangs(hooked: Hooked) -> None:
    quiesce, thaw = hooked.script("quiesce", "sleep 600"), hooked.script("thaw")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", quiesce, "--thaw", thaw, "--hook-timeout", "10m")
    taking = threading.Thread(
        target=hooked.daemon.run, args=("snapshot", "create", "v", "--name", "s"), daemon=True
    )
    taking.start()
    wait_until(lambda: len(hooked.noted()) == 1, "the quiesce", 10)
    began = time.monotonic()
    hooked.daemon.service.stop()
    assert time.monotonic() - began < 10
    taking.join(10)
    hooked.daemon.start()
    assert hooked.noted() == ["quiesce quiesce", "thaw thaw"]
    assert hooked.mark() == "crash"


def test_a_snapshot_at_its_hooks_is_shown_as_under_way(hooked: Hooked) -> None:
    go = hooked.directory / "go"
    quiesce = hooked.script("quiesce", f"while [ ! -e {go} ]; do sleep 0.05; done")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", quiesce, "--hook-timeout", "60s")
    taking = threading.Thread(
        target=hooked.daemon.run, args=("snapshot", "create", "v", "--name", "s"), daemon=True
    )
    taking.start()
    wait_until(lambda: len(hooked.noted()) == 1, "the quiesce", 10)
    [shown] = hooked.said("status")["operations"]
    assert (shown["what"], shown["volumes"]) == ("snapshot create (quiesce commands)", ["v"])
    go.touch()
    taking.join(20)
    assert hooked.said("status")["operations"] == []
    assert hooked.mark() == "application"


@pytest.mark.slow
def test_hooks_that_hang_leave_the_api_to_others(hooked: Hooked) -> None:
    quiesce = hooked.script("quiesce", "sleep 600")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", quiesce, "--hook-timeout", "3s")
    takers = [
        threading.Thread(target=hooked.daemon.run, args=("snapshot", "create", "v"), daemon=True)
        for _ in range(CONCURRENT_MAX)
    ]
    for taker in takers:
        taker.start()
    wait_until(lambda: hooked.daemon.service._hooks._asked._value == 0, "all to be at their hooks", 10)
    assert "hooks of 4 other" in hooked.daemon.refused("snapshot", "create", "v")
    began = time.monotonic()
    hooked.daemon.ok("snapshot", "create", "w")
    assert time.monotonic() - began < 2
    hooked.daemon.service._hooks.stop()  # the rest need not wait for their time-outs
    for taker in takers:
        taker.join(20)


def test_what_a_quiesce_command_leaves_is_ended_after_the_thaw(hooked: Hooked) -> None:
    pid = hooked.directory / "pid"
    quiesce = hooked.script("quiesce", f"setsid sleep 600 & echo $! > {pid}")
    thaw = hooked.script("thaw", f"kill -0 $(cat {pid}) && echo there >> {hooked.notes}")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", quiesce, "--thaw", thaw)
    hooked.daemon.ok("snapshot", "create", "v", "--name", "s")
    assert hooked.noted() == ["quiesce quiesce", "thaw thaw", "there"]
    assert hooked.mark() == "application"
    assert has_ended(int(pid.read_text()))
    hooked.daemon.ok("volume", "set", "v", "--quiesce", quiesce)
    hooked.daemon.ok("snapshot", "create", "v", "--name", "t")
    assert has_ended(int(pid.read_text()))


@pytest.mark.parametrize("status", [0, 1])
def test_what_a_thaw_command_leaves_stays_if_it_succeeded(hooked: Hooked, status: int) -> None:
    pid = hooked.directory / "pid"
    thaw = hooked.script("thaw", f"setsid sleep 600 & echo $! >> {pid}; exit {status}")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", hooked.script("quiesce"), "--thaw", thaw)
    hooked.daemon.ok("snapshot", "create", "v", "--name", "s")
    left = [int(word) for word in pid.read_text().split()]
    assert len(left) == 1 + status
    if status:
        assert all(map(has_ended, left))
    else:
        assert not has_ended(left[0])
        os.kill(left[0], signal.SIGKILL)


def test_a_command_that_never_stops_talking_is_told_in_one_sentence(hooked: Hooked) -> None:
    hooked.daemon.ok("volume", "set", "v", "--quiesce", "/usr/bin/yes", "--hook-timeout", "1s")
    hooked.daemon.ok("snapshot", "create", "v", "--name", "s")
    trouble = hooked.said("snapshot", "show", "v@s")["hook_trouble"]
    assert trouble == "volume v: its quiesce command did not end within 1 s and was killed: y ... y"


def test_a_shell_only_where_one_is_asked_for(hooked: Hooked) -> None:
    daemon = hooked.daemon
    command = f"{hooked.script('q')} && echo more >> {hooked.notes}"
    daemon.ok("volume", "set", "v", "--quiesce", command)
    daemon.ok("snapshot", "create", "v", "--name", "s")
    assert hooked.noted() == ["quiesce q"]
    daemon.ok("volume", "set", "v", "--quiesce", command, "--hook-shell")
    daemon.ok("snapshot", "create", "v", "--name", "t")
    assert hooked.noted() == ["quiesce q", "quiesce q", "more"]
    assert "by /bin/sh" in daemon.ok("volume", "show", "v")
    daemon.ok("volume", "set", "v", "--no-hooks")
    daemon.ok("snapshot", "create", "v", "--name", "u")
    assert len(hooked.noted()) == 3
    assert hooked.said("volume", "show", "v")["hooks"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--thaw", "/bin/true"], "no quiesce command"),
        (["--quiesce", "true"], "absolute path"),
        (["--quiesce", ""], "absolute path"),
        (["--quiesce", "/bin/true 'x"], "cannot be taken apart"),
        (["--quiesce", "/nix/nix"], "not a program"),
        (["--quiesce", "/tmp"], "not a program"),
        (["--quiesce", "/bin/true " + "x" * 40_000], "longer than 32768"),
        (["--quiesce", "/bin/true", "--hook-timeout", "0s"], "not from 1 s to 600 s"),
        (["--quiesce", "/bin/true", "--hook-timeout", "1h"], "not from 1 s to 600 s"),
    ],
)
def test_what_are_no_hooks_is_refused(hooked: Hooked, arguments: list[str], words: str) -> None:
    assert words in hooked.daemon.refused("volume", "set", "v", "--when-full", "keep-snapshots", *arguments)
    shown = hooked.said("volume", "show", "v")
    assert (shown["hooks"], shown["when_full"]) == (None, "keep-writing")
    schedule = ["schedule", "add", "v", "--every", "1h", "--keep", "last=1"]
    assert words in hooked.daemon.refused(*schedule, *arguments)


def test_failed_hooks_are_told_at_create_and_can_be_required(hooked: Hooked) -> None:
    run = hooked.daemon.run
    assert "no hooks are set" in hooked.daemon.refused("snapshot", "create", "v", "--require-hooks")
    hooked.daemon.ok(
        "volume", "set", "v", "--quiesce", hooked.script("q", "exit 3"), "--thaw", hooked.script("t")
    )
    result = run("snapshot", "create", "v", "--name", "s")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: snapshot v@s is only crash-consistent, because volume v: its quiesce command ended with 3\n"
    )
    [view] = hooked.said("snapshot", "create", "v", "--name", "j")
    assert (view["consistency"], "ended with 3" in view["hook_trouble"]) == ("crash", True)
    for arguments in (["v", "w"], ["v"]):
        said = hooked.daemon.refused("snapshot", "create", *arguments, "--name", "r", "--require-hooks")
        assert said.startswith(f"no snapshot of {', '.join(arguments)} was taken: volume v: its quiesce")
    assert [each["export"] for each in hooked.said("snapshot", "list")] == ["v@s", "v@j"]
    assert hooked.noted() == ["quiesce q", "thaw t"] * 4
    assert hooked.owed() == 0
    hooked.daemon.ok("group", "create", "g", "v", "w")
    assert "no snapshot of" in hooked.daemon.refused("snapshot", "create", "@g", "--require-hooks")
    hooked.daemon.ok("volume", "set", "v", "--quiesce", hooked.script("q"))
    result = run("snapshot", "create", "@g", "--name", "good", "--require-hooks")
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("target", ["v", "@g"])
def test_a_thaw_command_that_fails_is_told_to_who_asked_for_the_snapshot(hooked: Hooked, target: str) -> None:
    daemon = hooked.daemon
    daemon.ok("group", "create", "g", "v", "w")
    thaw = hooked.script("thaw", "echo mount is busy >&2; exit 5")
    daemon.ok("volume", "set", "v", "--quiesce", hooked.script("quiesce"), "--thaw", thaw)
    done = daemon.run("snapshot", "create", target, "--name", "s")
    assert done.exit_code == 0
    assert done.stdout.startswith("snapshot ")
    assert done.stderr == (
        "warning: the application of volume v may still be quiesced, because the thaw command of volume v"
        f" {THAW_FAILED}; it is run again when polyvold is next started\n"
    )
    assert hooked.noted() == ["quiesce quiesce", "thaw thaw", "thaw thaw"]
    assert hooked.mark() == "application"
    view = hooked.said("snapshot", "create", target, "--name", "t")
    members = view["members"] if target == "@g" else view
    wanted = [f"the thaw command of volume v {THAW_FAILED}", None]
    assert [each["thaw_trouble"] for each in members] == wanted[: len(members)]


def test_a_thaw_command_that_succeeds_when_it_is_run_again_has_not_failed(hooked: Hooked) -> None:
    daemon, once = hooked.daemon, hooked.directory / "once"
    thaw = hooked.script("thaw", f"test -e {once} || {{ touch {once}; exit 5; }}")
    daemon.ok("volume", "set", "v", "--quiesce", hooked.script("quiesce"), "--thaw", thaw)
    done = daemon.run("snapshot", "create", "v", "--name", "s")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "ended with 5" in hooked.warnings()
