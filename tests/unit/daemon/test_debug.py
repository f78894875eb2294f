"""test_debug: what is said of processors and in a dump, and of failures that nobody asked about."""

import errno
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.client.cli.commands import cli as commands
from polyvol.daemon.service import Service
from polyvol.daemon.types.snapshots import SnapshotCreate
from polyvol.daemon.types.volumes import VolumeCreate
from polyvol.mapping.ids import VolumeId
from polyvol.snapshot.errors.cuts import CutFailed
from tests.support.proc import wait_until
from tests.support.sim_checks import EngineError
from tests.support.sim_engine import SimEngine, SimWorld

if TYPE_CHECKING:
    from polyvol.engine import EngineInspection, Group, LogLine, ShareLook

MIB = 1 << 20
NONE: "Group" = {"count": 0, "oldest_ms": None}


@pytest.fixture
def world() -> SimWorld:
    return SimWorld()


@pytest.fixture
def service(short_dir: Path, world: SimWorld) -> Iterator[Service]:
    made = Service(short_dir / "state", processors=2, engine_module=world)
    made.start()
    made.create_volume(VolumeCreate(name="data", size=64 * MIB))
    yield made
    made.stop()


def share(**more: object) -> "ShareLook":
    look: ShareLook = {
        "volume": 1,
        "queued": 0,
        "turn": NONE,
        "overlap": NONE,
        "backlog": {},
        "held": NONE,
        "starved": NONE,
        "reserved": NONE,
        "given_up": NONE,
        "settling": NONE,
        "in_flight": [],
        "cut_ms": None,
        "checkpointing": False,
        "leaving": False,
        "rolling_back": False,
    }
    return {**look, **more}  # type: ignore[typeddict-item]


def stuck(thread: int) -> "EngineInspection":
    """Processor 0 is stuck in a write; processor 1 has a cut, and I/O in flight."""
    return {
        "cutting": True,
        "flushers": [],
        "pools": [],
        "memory": {},
        "limits": {},
        "processors": [
            {
                "processor": 0,
                "answered": False,
                "running": True,
                "sharing": 0,
                "own_thread": True,
                "thread": thread,
                "since_ms": 12250,
                "doing": "write",
                "doing_volume": 1,
                "queued_parts": {"count": 3, "oldest_ms": 12000},
                "queued_others": {"count": 1, "oldest_ms": 12000},
                "shares_ms": None,
                "shares": [share(queued=3)],
            },
            {
                "processor": 1,
                "answered": True,
                "running": False,
                "sharing": 0,
                "own_thread": None,
                "thread": None,
                "since_ms": None,
                "doing": "maintenance",
                "doing_volume": 1,
                "queued_parts": NONE,
                "queued_others": NONE,
                "shares_ms": 0,
                "shares": [
                    share(
                        turn={"count": 2, "oldest_ms": 250},
                        backlog={"cold-read": {"count": 5, "oldest_ms": 1500}},
                        held={"count": 4, "oldest_ms": 500},
                        starved={"count": 1, "oldest_ms": 3000},
                        reserved={"count": 2, "oldest_ms": 750},
                        in_flight=[
                            {"kind": "small-write", "place": "pool", "count": 2, "oldest_ms": 750},
                            {"kind": "cold-read", "place": "ring", "count": 9, "oldest_ms": 500},
                        ],
                        cut_ms=480,
                    )
                ],
            },
        ],
    }


def run(service: Service, *words: str) -> str:
    done = CliRunner().invoke(commands, [*words, "--state-dir", str(service.state_dir)])
    assert done.exception is None, (done.exception, done.output)
    return done.stdout


def test_a_stuck_processor_and_what_waits_are_shown(service: Service, world: SimWorld) -> None:
    world.inspection = stuck(threading.get_native_id())
    lines = run(service, "debug", "processors").splitlines()
    assert max(map(len, lines[:3])) <= 120
    assert lines[1].split() == ["0", "stuck", "12.2", "s", "data", "3", *["-"] * 6, "12.0", "s"]
    assert lines[2].split() == ["1", "idle", "data", "0", "7", "4", "1", "2", "2", "9", "3.0", "s"]
    name = Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text().strip()
    text = "\n".join(lines)
    assert (
        f"its own thread ({name}, {threading.get_native_id()}) has been at it for 12.2 s, doing: write"
        in text
    )
    assert "volume data: a cut has held its writes for 0.5 s" in text
    assert ["1", "data", "cold-read", "ring", "9", "0.5", "s"] in [line.split() for line in lines]
    shown = json.loads(run(service, "debug", "processors", "--json"))
    assert shown["processors"][0]["shares_ms"] is None
    assert shown["processors"][1]["shares"][0]["starved"] == {"count": 1, "oldest_ms": 3000}


def test_a_dump_is_a_new_file_for_its_owner_alone(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "dump.json"
    run(service, "debug", "dump", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    found = json.loads(file.read_text())
    assert found["problems"] == []
    assert found["status"]["volumes"][0]["name"] == "data"
    assert {each["python_name"] for each in found["threads"]} >= {"MainThread", "polyvol-api", "polyvol-log"}
    assert any(frame.endswith(" next_log_lines") for each in found["threads"] for frame in each["frames"])
    assert found["descriptors"]["socket"] > 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    done = CliRunner().invoke(commands, ["debug", "dump", str(file), "--state-dir", str(service.state_dir)])
    assert (done.exit_code, "exists already" in done.output) == (1, True)
    assert file.read_bytes() == before


def test_a_dump_to_the_standard_output_is_nothing_but_the_dump(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in ([], ["--json"]):
        arguments = ["debug", "dump", "-", *option, "--state-dir", str(service.state_dir)]
        done = CliRunner().invoke(commands, arguments)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["status"]["volumes"][0]["name"] == "data"
        assert done.stderr == "" if not option else json.loads(done.stderr) == {"path": "-", "problems": []}
    assert not (tmp_path / "-").exists()


def test_a_dump_that_cannot_be_had_leaves_no_file(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(Client, "get", fails)
    CliRunner().invoke(
        commands, ["debug", "dump", str(tmp_path / "f"), "--state-dir", str(service.state_dir)]
    )
    assert not (tmp_path / "f").exists()
    assert list(tmp_path.glob("f*")) == []


def test_a_dump_is_made_while_a_verb_holds_a_lock_and_the_catalog_hangs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = service._context
    hang = threading.Event()
    monkeypatch.setattr("polyvol.daemon.debug.dump.PATIENCE_S", 0.5)

    def hangs(*_: object) -> None:
        hang.wait(30)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    began = threading.Event()

    def verb() -> None:
        with context.locks.volumes({VolumeId(1): "data"}, "volume grow"), context.catalog_lock:
            began.set()
            hang.wait(30)

    thread = threading.Thread(target=verb)
    thread.start()
    began.wait(30)
    try:
        monkeypatch.setattr(context.catalog, "volumes", hangs)
        monkeypatch.setattr(context.catalog, "devices", hangs)
        before = time.monotonic()
        found = service.debug.dump(service.status)
        assert time.monotonic() - before < 20
        assert [each.split(" could")[0] for each in found.problems] == [
            "the status",
            "the names of volumes",
            "the names of devices",
        ]
        held = {(each.noun, each.what): each.thread for each in found.locks}
        assert held.keys() == {("volume", "volume grow"), ("catalog", "a change of the catalog")}
        assert set(held.values()) == {thread.native_id}
        assert any("verb" in frame for each in found.threads for frame in each.frames)
    finally:
        hang.set()
        thread.join()


def line(**more: object) -> "LogLine":
    said: LogLine = {
        "level": "warning",
        "code": "segment-not-made",
        "text": "the next journal segment cannot be made",
        "volume": 1,
        "device": None,
        "errno": 5,
        "times": 3,
    }
    return {**said, **more}  # type: ignore[typeddict-item]


def test_what_the_engine_says_is_logged_with_the_daemons_fields(
    service: Service, world: SimWorld, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "polyvol.engine"):
        world.log += [line(), line(level="error", code="panic", volume=99, times=1, errno=0)]
        world.dropped_lines = 7
        world.wake_log_readers()
        wait_until(lambda: len(caplog.records) >= 3, "the lines", 20)
    first, second, third = caplog.records
    text = "volume data: the next journal segment cannot be made (3 times)"
    assert (first.levelno, first.getMessage()) == (logging.WARNING, text)
    fields = {name: vars(first).get(name) for name in ("VOLUME", "ENGINE_CODE", "ERRNO")}
    assert fields == {"VOLUME": "data", "ENGINE_CODE": "segment-not-made", "ERRNO": 5}
    assert (second.levelno, vars(second)["VOLUME"]) == (logging.ERROR, "number 99")
    assert third.getMessage() == "7 lines of the engine were dropped: there were too many"


def test_a_checkpoint_that_fails_is_an_event_and_degrades_its_volume_until_one_succeeds(
    service: Service, world: SimWorld
) -> None:
    def texts() -> list[str]:
        return [event.text for event in service._context.events.latest()]

    assert isinstance(service.engine, SimEngine)
    engine = service.engine
    world.checkpoint_errno[1] = errno.ENOSPC
    for _ in range(4):  # a volume's processors each report their own
        engine.events.put({"kind": "checkpoint-failed", "volume": 1})
    trouble = "volume data: its last checkpoint failed: no space left on its file system"
    wait_until(lambda: any(text.startswith(trouble) for text in texts()), "the event", 20)
    shown = service.volumes.show("data", partitions=False)
    assert shown.state == "degraded"
    assert shown.reason is not None
    assert "its last checkpoint failed" in shown.reason
    engine.events.put({"kind": "checkpoint-written", "volume": 1})  # of one; others still fail
    wait_until(engine.events.empty, "the end of the events", 20)
    world.checkpoint_errno[1] = 0
    engine.events.put({"kind": "checkpoint-written", "volume": 1})
    wait_until(lambda: "volume data: its checkpoints are written again" in texts(), "the end", 20)
    assert service.volumes.show("data", partitions=False).state == "serving"
    assert len([text for text in texts() if text.startswith(trouble)]) == 1


def test_what_a_snapshot_that_failed_could_not_undo_is_an_event_and_a_note(
    service: Service, world: SimWorld
) -> None:
    world.fail["flush"] = 0
    world.fail["drop_snapshot"] = 0
    with pytest.raises(CutFailed, match="could not be undone on data"):
        service.create_snapshots(SnapshotCreate(volumes=("data",), name="s"))
    sentence = "dropping its snapshot of volume data failed: simulated failure of drop_snapshot"
    assert any(event.text.startswith(sentence) for event in service._context.events.latest())
    assert any(note.startswith(sentence) for note in service.status().notes)
    world.fail.clear()
    service.delete_volume("data")
    assert service.status().notes == []


def test_a_weekly_scrub_that_cannot_begin_is_an_event(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrubs = service.scrubs
    monkeypatch.setattr(scrubs, "due", lambda: service._context.find_volume("data"))
    service._context.volume_trouble[VolumeId(1)] = "its journals are gone"
    scrubs._begin_weekly()
    texts = [event.text for event in service._context.events.latest()]
    assert any(text.startswith("the weekly scrub of volume data has not begun: ") for text in texts)


def test_a_volume_whose_state_the_engine_cannot_say_is_not_taken_for_closed(
    service: Service, world: SimWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, volume = service._context, service._context.find_volume("data")

    def fails(_: int) -> None:
        raise EngineError("io", "the processor has stopped", errno.ESHUTDOWN)

    monkeypatch.setattr(SimEngine, "volume_stats", lambda self, volume: fails(volume))
    assert context.engine_has(volume)
    monkeypatch.undo()
    assert context.engine_has(volume)
    service.delete_volume("data")
    assert not context.engine_has(volume)


def test_processors_and_dumps_are_answered_when_the_system_refuses_threads(
    service: Service, world: SimWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.inspection = stuck(threading.get_native_id())

    def refuses(_: object) -> None:
        raise RuntimeError("can't start new thread")

    file = tmp_path / "dump.json"
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        shown = json.loads(run(service, "debug", "processors", "--json"))
        assert [one["volume"] for each in shown["processors"] for one in each["shares"]] == ["number 1"] * 2
        run(service, "debug", "dump", str(file))
    found = json.loads(file.read_text())
    missing = ("the status", "the names of volumes", "the names of devices")
    said = [f"{each} could not be found out: can't start new thread" for each in missing]
    assert found["problems"] == said
    assert found["threads"] != []
    assert found["processors"] is not None
    assert service.status().volumes[0].name == "data"


def test_a_client_that_leaves_after_a_request_without_a_header_is_no_defect(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """The HTTP library logs the path that was asked for, and there is none."""
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(service.state_dir / "control.sock"))
            client.sendall(b"GARBAGE\r\n\r\n")
    Client(service.state_dir).get("status")
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


COLLECTED = """
import gc, threading, time
from polyvol.daemon.debug.threads import thread_views
ended = threading.Event()
def begin_threads():
    while not ended.is_set():
        each = threading.Thread(target=lambda: None)
        each.start()
        each.join()
beginners = [threading.Thread(target=begin_threads) for _ in range(8)]
for beginner in beginners:
    beginner.start()
gc.callbacks.append(lambda phase, info: time.sleep(0.001))
gc.set_threshold(1)
until = time.monotonic() + 1
while time.monotonic() < until:
    assert thread_views()
ended.set()  # Python may crash if threads are begun while it ends
for beginner in beginners:
    beginner.join()
"""


def test_garbage_collections_during_a_dump_do_not_stop_the_process() -> None:
    """They run code that lets other threads run, which need the lock under which Python lists the frames."""
    subprocess.run([sys.executable, "-c", COLLECTED], check=True, timeout=60)
