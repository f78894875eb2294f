"""polyvol attach and detach at once, killed half-way, and of devices that died: nothing is left or hidden.

How it works      A program that attaching runs is replaced on PATH by a script that kills the `polyvol` which
                  runs it, before or after the program itself: so each step is the last one once.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from polyvol.daemon.client.attach.records import Places
from tests.clients.attached import Host
from tests.support import fuse
from tests.support.daemon import BIN
from tests.support.proc import check, environment, has_ended, run, tool, wait_until

MIB = 1 << 20


def at_once(host: Host, *commands: tuple[str, ...]) -> list[tuple[int, str]]:
    """Run several `polyvol` at the same time; exit codes, and what they say."""
    running = [
        subprocess.Popen(
            [str(BIN / "polyvol"), *command],
            env=environment(host.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    return [(process.wait(60), process.communicate()[0]) for process in running]


def state(host: Host, name: str = "v") -> str:
    return str(host.listed()[name]["state"])


@pytest.mark.slow
def test_of_two_attaches_at_once_one_is_refused(host: Host) -> None:
    for _ in range(3):
        done = at_once(host, *[("attach", "v", "--fuse")] * 3)
        assert sorted(code for code, _ in done) == [0, 1, 1], done
        assert all("attached already" in said for code, said in done if code), done
        assert (len(host.loops()), len(host.nbdfuses()), state(host)) == (1, 1, "attached")
        done = at_once(host, *[("detach", "v")] * 3)
        assert sorted(code for code, _ in done) == [0, 1, 1], done
        assert all("not attached" in said for code, said in done if code), done
        assert host.left() == []


@pytest.mark.slow
def test_attaches_and_detaches_at_once_leave_what_the_last_one_made(host: Host) -> None:
    host.daemon.ok("snapshot", "create", "v", "--name", "s")
    for _ in range(4):
        commands = [("attach", "v", "--fuse"), ("detach", "v"), ("attach", "v@s", "--fuse"), ("detach", "v")]
        for code, said in at_once(host, *commands):
            assert code == 0 or "attached" in said, said
        attached = [each for each in host.listed().values() if each["state"] != "not attached"]
        assert {each["state"] for each in attached} == {"attached"}
        assert len(attached) == len(host.loops()) == len(host.nbdfuses())
        for each in attached:
            host.ok("detach", str(each["name"]))
        assert host.left() == []


KILL = {"before": 'kill -9 "$PPID"\nexec {} "$@"\n', "after": '{} "$@"\nkill -9 "$PPID"\n'}


def killed_at(host: Host, program: str, when: str, *command: str) -> None:
    """Run `polyvol`, which is killed when it runs this program. The program, unless it stays, has ended."""
    folder = host.daemon.directory / "path"
    folder.mkdir(exist_ok=True)
    script = folder / program
    number = folder / "pid"
    script.write_text(f"#!/bin/sh\necho $$ >'{number}'\n" + KILL[when].format(tool(program)))
    script.chmod(0o755)
    env = host.env | {"PATH": f"{folder}:{environment()['PATH']}"}
    done = run(BIN / "polyvol", *command, env=env)
    script.unlink()
    assert done.rc == -signal.SIGKILL, f"{command} did not run {program}: {done}"
    if program != "nbdfuse":
        wait_until(lambda: has_ended(int(number.read_text())), f"the end of {program}", 10)


@pytest.mark.parametrize(
    ("program", "when"),
    [
        ("losetup", "before"),
        pytest.param("nbdfuse", "before", marks=pytest.mark.slow),
        pytest.param("losetup", "after", marks=pytest.mark.slow),
    ],
)
def test_after_an_attach_that_was_killed_the_next_command_has_all(
    host: Host, program: str, when: str
) -> None:
    for command in ("attach", "detach"):
        killed_at(host, program, when, "attach", "v", "--fuse")
        assert state(host) in ("attached", "dead")
        if command == "attach" and state(host) == "dead":
            host.ok("attach", "v", "--fuse")
            assert state(host) == "attached"
        host.ok("detach", "v")
        assert host.left() == []


@pytest.mark.parametrize(
    ("program", "when"),
    [
        ("umount", "before"),
        pytest.param("losetup", "before", marks=pytest.mark.slow),
        pytest.param("losetup", "after", marks=pytest.mark.slow),
        pytest.param("umount", "after", marks=pytest.mark.slow),
    ],
)
def test_after_a_detach_that_was_killed_the_next_command_has_all(host: Host, program: str, when: str) -> None:
    for command in ("attach", "detach"):
        host.ok("attach", "v", "--fuse")
        killed_at(host, program, when, "detach", "v")
        assert state(host) in ("attached", "dead")
        if command == "attach" and state(host) == "dead":
            host.ok("attach", "v", "--fuse")
            assert (len(host.loops()), len(host.nbdfuses()), state(host)) == (1, 1, "attached")
        host.ok("detach", "v")
        assert host.left() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_any_time_nothing_is_left(host: Host) -> None:
    for command in (("attach", "v", "--fuse"), ("detach", "v")):
        for delay_ms in range(300, 1500, 75):
            if command[0] == "detach":
                host.ok("attach", "v", "--fuse")
            process = subprocess.Popen(
                [str(BIN / "polyvol"), *command], env=environment(host.env), stderr=subprocess.DEVNULL
            )
            time.sleep(delay_ms / 1000)
            process.kill()
            process.wait(10)
            run(BIN / "polyvol", "detach", "v", env=host.env)
            assert host.left() == [], f"killed after {delay_ms} ms: {command}"


def nbdfuse_dies(host: Host) -> None:
    os.kill(host.nbdfuses()[0], signal.SIGKILL)
    wait_until(lambda: host.nbdfuses() == [], "the end of nbdfuse")


def server_restarts(host: Host) -> None:
    host.daemon.restart()


def loop_device_goes(host: Host) -> None:
    check("losetup", "--detach", host.loops()[0])
    wait_until(lambda: host.loops() == [], "the end of the loop device")


@pytest.mark.parametrize(
    "dies",
    [
        nbdfuse_dies,
        pytest.param(server_restarts, marks=pytest.mark.slow),
        pytest.param(loop_device_goes, marks=pytest.mark.slow),
    ],
)
def test_a_device_that_died_is_listed_as_dead_and_attached_again(host: Host, dies: object) -> None:
    assert callable(dies)
    host.ok("attach", "v", "--fuse")
    assert state(host) == "attached"
    dies(host)
    wait_until(lambda: state(host) == "dead", "the list's saying so")
    assert host.listed()["v"]["trouble"]
    path = Path(host.ok("attach", "v", "--fuse").strip())
    assert (len(host.loops()), len(host.nbdfuses()), state(host)) == (1, 1, "attached")
    check("dd", "if=/dev/zero", f"of={path}", "bs=4k", "count=1", "oflag=direct", "conv=notrunc")
    host.ok("detach", "v")
    assert host.left() == []


@pytest.mark.slow
def test_a_dead_device_in_use_is_not_attached_again_and_force_leaves_nothing(host: Host) -> None:
    path = Path(host.ok("attach", "v", "--fuse").strip()).resolve()
    check("mkfs.ext4", "-q", path)
    with fuse.mount(path, host.daemon.directory) as mounted:
        (mounted / "dirty").write_bytes(bytes(MIB))
        nbdfuse_dies(host)
        said = host.refused("attach", "v", "--fuse")
        assert "is dead, because its nbdfuse has ended, and is still mounted at" in said
        said = host.ok("detach", "v", "--force")
        assert f"{path} ends when that does" in said
        assert (host.nbdfuses(), host.listed()) == ([], {})
        second = Path(host.ok("attach", "v", "--fuse").strip()).resolve()
        assert second != path
        assert state(host) == "attached"
    assert host.ok("detach", "v") == "v detached\n"
    wait_until(lambda: host.left() == [], "the end of all")


def test_force_on_a_mounted_device_with_writes_leaves_no_nbdfuse(host: Host) -> None:
    path = Path(host.ok("attach", "v", "--fuse").strip()).resolve()
    check("mkfs.ext4", "-q", path)
    with fuse.mount(path, host.daemon.directory) as mounted:
        (mounted / "dirty").write_bytes(bytes(8 * MIB))
        host.ok("detach", "v", "--force")
        assert (host.nbdfuses(), host.listed()) == ([], {})
        wait_until(lambda: host.daemon.volume("v")["connections"] == 0, "the end of its connections")
    wait_until(lambda: host.left() == [], "the end of the loop device")


@pytest.mark.slow
def test_a_device_that_cannot_grow_with_its_volume_says_so(host: Host) -> None:
    host.ok("attach", "v", "--fuse")
    grown = run(BIN / "polyvol", "volume", "grow", "v", "--size", "128M", env=host.env)
    assert grown.rc == 0
    assert "v (/dev/loop" in grown.err
    assert "detach it and attach it again" in grown.err
    listed = host.listed()["v"]
    assert listed["size"] == 64 * MIB
    assert "has grown to 128 MiB" in str(listed["trouble"])
    host.ok("detach", "v")
    host.ok("attach", "v", "--fuse")
    assert (host.listed()["v"]["size"], host.listed()["v"]["trouble"]) == (128 * MIB, None)
    now = Places(host.root).now("v")
    assert now is not None
    assert now.size == 128 * MIB
