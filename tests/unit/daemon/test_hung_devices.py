"""A device that hangs: its volume's verbs hang, and nothing else does.

The engine's twin hangs for one volume or device (`world.hang`). Requests for others must be
done.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polyvol.daemon import service
from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.config import Config
from polyvol.daemon.devices import files as device_files, udev, verbs as devices
from polyvol.daemon.devices.udev import DiskWatch
from polyvol.daemon.errors import StopUnfinished
from polyvol.daemon.locks import WAITING_MAX
from polyvol.daemon.process import main_loop
from polyvol.daemon.types.scrubs import ScrubSet
from polyvol.daemon.volumes import scrub
from polyvol.daemon.workers import ended
from polyvol.mapping.opening import identity_of as identity_of_path
from tests.support.proc import wait_until
from tests.support.sim_engine import SimEngine
from tests.unit.conftest import Daemon

SOON_S = 20.0
"""Others must be done by then. What hangs does so for longer."""
HUNG, WELL = 1, 2
"""The volumes' ids."""


@pytest.fixture
def pair(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    """Two volumes on devices of their own; `hung` is the one whose devices will hang."""
    for name in ("hung", "well"):
        daemon.ok("device", "add", str(tmp_path / f"{name}.img"), "--size", "200M", "--name", f"{name}-disk")
        options = ("--device", f"{name}-disk", "--log-device", f"{name}-disk")
        daemon.ok("volume", "create", name, "--size", "16M", *options)
    yield daemon
    for event in daemon.world.hang.values():
        event.set()


@contextmanager
def hangs(daemon: Daemon, *arguments: str, at: tuple[str, object]) -> Iterator[None]:
    """While `polyvol ARGUMENTS` hangs in this call of the engine."""
    event = daemon.world.hang[at] = threading.Event()
    before = len(daemon.service.status().operations)
    thread = threading.Thread(target=daemon.run, args=arguments, daemon=True)
    thread.start()
    try:
        wait_until(
            lambda: len(daemon.service.status().operations) > before and at[0] in daemon.world.names(),
            "the call that hangs",
            10,
        )
        yield
    finally:
        event.set()
        del daemon.world.hang[at]
        thread.join(SOON_S)
        assert not thread.is_alive()


def every_verb(daemon: Daemon, path: Path) -> None:
    """All that can be done with a volume that works, a device, a group and a schedule."""
    image = path / "other.img"
    for line in (
        "snapshot create well --name a",
        "snapshot create well --name b",
        "snapshot hold well@a --tag t",
        "snapshot release well@a --tag t",
        "snapshot rollback well@a --no-safety",
        "volume clone well@a copy",
        "volume delete copy --yes",
        "snapshot delete well@a",
        "snapshot delete well@b*",
        "volume set well --when-full keep-snapshots",
        "volume grow well --size 24M",
        "volume add-log well --size 64M",
        f"device add {image} --size 100M --name other",
        "volume create more --size 1M --device other --log-device other",
        "group create g well more",
        "snapshot create @g --name c",
        "snapshot delete @g@c",
        "group leave g more",
        "volume delete more --yes",
        "device retry other",
        "device remove other",
        "schedule add well --every 1h --keep last=1",
        "schedule remove well-auto",
        "scrub well",
    ):
        daemon.ok(*line.split())


def every_view(daemon: Daemon) -> None:
    for line in (
        "status",
        "volume list",
        "volume show hung",
        "volume show well --partitions",
        "snapshot list",
        "device list",
        "device show hung-disk",
        "group list",
        "schedule list",
    ):
        daemon.ok(*line.split())


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ("snapshot create hung", "settle"),
        pytest.param("snapshot create hung", "flush", marks=pytest.mark.slow),
        pytest.param("snapshot delete hung@old", "drop_snapshot", marks=pytest.mark.slow),
        pytest.param("snapshot rollback hung@old --no-safety", "roll_back", marks=pytest.mark.slow),
        pytest.param("volume grow hung --size 32M", "grow_volume", marks=pytest.mark.slow),
        pytest.param("volume add-log hung --size 64M", "add_log", marks=pytest.mark.slow),
        ("volume clone hung@old copied", "add_volume"),
        pytest.param("volume delete hung --yes", "remove_volume", marks=pytest.mark.slow),
        pytest.param("device retry hung-disk", "reopen_device", marks=pytest.mark.slow),
        ("device add {path}/new.img --size 8M", "open_device"),
    ],
)
def test_a_verb_that_hangs_holds_up_no_other_volume(
    pair: Daemon, tmp_path: Path, arguments: str, call: str
) -> None:
    pair.ok("snapshot", "create", "hung", "--name", "old")
    first: object = HUNG
    if call == "add_volume":
        first = WELL + 1
    elif call == "open_device":
        first = max(device.id for device in pair.service._context.catalog.devices.all()) + 1
    with hangs(pair, *arguments.format(path=tmp_path).split(), at=(call, first)):
        assert ended(lambda: every_view(pair), SOON_S, "views"), "a view waits for what hangs"
        others = tmp_path / "others"
        others.mkdir()
        if call == "open_device":  # the ids of devices that follow are others
            pair.ok("snapshot", "create", "well")
        else:
            assert ended(lambda: every_verb(pair, others), SOON_S, "verbs"), "a verb waits for what hangs"
    pair.ok("status")


def test_who_asks_for_the_hung_volume_is_refused_with_what_it_does(pair: Daemon) -> None:
    pair.service._context.locks.wait_s = 0.05
    with hangs(pair, "snapshot", "create", "hung", at=("flush", HUNG)):
        for line in (
            "snapshot create hung",
            "snapshot create hung well",
            "volume delete hung --yes",
            "volume set hung --when-full keep-snapshots",
        ):
            said = pair.refused(*line.split())
            assert "volume hung has been busy with snapshot create for" in said
        [shown] = Client(pair.state_dir).get("status")["operations"]
        assert (shown["what"], shown["volumes"], shown["devices"]) == ("snapshot create", ["hung"], [])
    assert pair.service.status().operations == []


def test_calls_that_wait_for_one_volume_leave_the_api_to_others(pair: Daemon) -> None:
    answers: list[str] = []

    def ask() -> None:
        try:
            Client(pair.state_dir).post("snapshots", body={"volumes": ["hung"]})
            answers.append("done")
        except ApiError as error:
            answers.append(error.code)

    with hangs(pair, "snapshot", "create", "hung", at=("flush", HUNG)):
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(3 * WAITING_MAX)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) == 2 * WAITING_MAX, "those that are too many to be refused", 10)
        assert set(answers) == {"volume-busy"}
        [shown] = Client(pair.state_dir).get("status")["operations"]
        assert shown["waiting"] == WAITING_MAX
        pair.ok("snapshot", "create", "well")
    for thread in threads:
        thread.join(SOON_S)
    assert answers.count("done") == WAITING_MAX


def starve(daemon: Daemon, volume: int) -> None:
    """The engine says that writes to a volume wait for room."""
    engine = daemon.service.engine
    assert isinstance(engine, SimEngine)
    daemon.world.starving.add(volume)
    engine.events.put({"kind": "log-full", "volume": volume})


def dropped(daemon: Daemon, volume: str) -> list[str]:
    return [each["snapshot"] for each in Client(daemon.state_dir).get("volumes", volume)["dropped"]]


def test_room_is_made_for_a_volume_while_another_hangs(pair: Daemon) -> None:
    for name in ("hung", "well"):
        pair.ok("snapshot", "create", name, "--name", "s", "--scheduled")
    with hangs(pair, "snapshot", "delete", "hung@s", at=("drop_snapshot", HUNG)):
        starve(pair, HUNG)  # this waits for its own volume
        starve(pair, WELL)
        wait_until(lambda: ("try_again", WELL) in pair.world.calls, "room", 10)
        assert dropped(pair, "well") == ["s"]


def test_room_is_made_while_the_cut_of_a_group_waits_for_another_member(pair: Daemon) -> None:
    pair.ok("group", "create", "g", "hung", "well")
    pair.ok("snapshot", "create", "well", "--name", "s", "--scheduled")
    with hangs(pair, "snapshot", "create", "@g", "--name", "c", at=("flush", HUNG)):
        starve(pair, WELL)
        wait_until(lambda: ("try_again", WELL) in pair.world.calls, "room", 10)
        assert dropped(pair, "well") == ["s"]
    assert "well@c" in pair.ok("snapshot", "list", "well")


def test_a_group_is_not_deleted_while_a_snapshot_of_it_is_made(pair: Daemon) -> None:
    pair.ok("group", "create", "g", "hung", "well")
    pair.service._context.locks.wait_s = 0.05
    with hangs(pair, "snapshot", "create", "@g", "--name", "c", at=("flush", HUNG)):
        said = pair.refused("group", "delete", "g")
        assert "group g has been busy with snapshot create for" in said
    assert "@g@c" in pair.ok("snapshot", "list", "@g")


def test_room_is_made_by_a_snapshot_of_a_group_whose_other_member_hangs(pair: Daemon) -> None:
    pair.ok("group", "create", "g", "hung", "well")
    pair.ok("snapshot", "create", "@g", "--name", "c", "--scheduled")
    event = pair.world.hang["drop_snapshot", HUNG] = threading.Event()
    starve(pair, WELL)
    wait_until(lambda: ("try_again", WELL) in pair.world.calls, "room", 10)
    assert dropped(pair, "well") == ["c"]
    event.set()


def test_schedules_of_others_run_and_what_is_late_is_told(pair: Daemon) -> None:
    event = pair.world.hang["flush", HUNG] = threading.Event()
    for name in ("hung", "well"):
        pair.ok("schedule", "add", name, "--every", "1s", "--keep", "last=1")
    schedules = pair.service.schedules

    def runs(name: str) -> str | None:
        return schedules.show(f"{name}-auto").last

    before = runs("well")
    wait_until(lambda: ("flush", HUNG) in pair.world.calls, "the run that hangs", 10)
    now = runs("well")
    wait_until(lambda: runs("well") not in (before, now), "later runs of the other", 10)
    assert schedules.show("hung-auto").count == 0
    pair.ok("schedule", "add", "hung", "--every", "1s", "--keep", "last=1", "--name", "second")
    pair.service._context.locks.wait_s = 0.05
    wait_until(lambda: schedules.show("second").error is not None, "why it is late", 10)
    assert "volume hung has been busy with snapshot create" in str(schedules.show("second").error)
    event.set()


def test_deletions_of_others_go_on(pair: Daemon) -> None:
    for name in ("hung", "well"):
        for number in range(3):
            pair.ok("snapshot", "create", name, "--name", f"s{number}")
    event = pair.world.hang["drop_snapshots", HUNG] = threading.Event()
    pair.ok("snapshot", "delete", "hung@s*", "--no-wait")
    wait_until(lambda: "drop_snapshots" in pair.world.names(), "the one that hangs", 10)
    pair.ok("snapshot", "delete", "well@s*")
    assert pair.service.deletions.show("well").left == 0
    assert pair.service.deletions.show("hung").left == 3
    event.set()


def test_a_reload_that_hangs_leaves_the_watch_to_its_pings(
    pair: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(main_loop, "notify", lambda *states: said.extend(states))
    monkeypatch.setattr(main_loop, "watchdog_interval_s", lambda: 0.01)
    monkeypatch.setattr(devices, "OPENED_S", 30.0)
    context = pair.service._context
    event = pair.world.hang["reopen_device", HUNG] = threading.Event()
    context.device_trouble[HUNG] = "it was away"
    signals = [signal.SIGHUP]
    pings: list[int] = []

    def next_signal(_: float) -> int | None:
        if signals:
            return signals.pop()
        if ("reopen_device", HUNG) in pair.world.calls:
            pings.append(said.count("WATCHDOG=1"))
        time.sleep(0.01)
        return signal.SIGTERM if len(pings) > 1 and pings[-1] > pings[0] + 3 else None

    monkeypatch.setattr(main_loop, "next_signal", next_signal)
    assert ended(lambda: main_loop.run(pair.service, lambda: Config(pair.state_dir)), SOON_S, "watch"), (
        "it waits for the reload"
    )
    assert "READY=1" not in said
    event.set()
    wait_until(lambda: "READY=1" in said, "the end of the reload", 10)
    assert context.device_trouble == {}


def test_news_of_a_disk_that_hangs_keeps_no_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    seen: list[object] = []

    def came(path: Path) -> None:
        if path.name == "hung":
            go_on.wait(30)
        seen.append(path.name)

    class News:
        def __init__(self, action: str, name: str) -> None:
            self.action, self.device_node, self.device_number = action, f"/dev/{name}", 7

    disks = DiskWatch(seen.append, came)
    for news in (News("add", "hung"), News("remove", "hung"), News("add", "well")):
        disks._observed(news)
    wait_until(lambda: seen == ["well"], "news of the other", 10)
    go_on.set()
    wait_until(lambda: seen == ["well", "hung", 7], "the rest, in order", 10)
    monkeypatch.setattr(udev, "STOP_S", 10.0)
    disks.stop()


def test_a_scrub_that_hangs_can_be_told_to_stop_and_keeps_no_other_waiting(
    pair: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "END_S", 0.05)
    event = pair.world.hang["scrub", HUNG] = threading.Event()
    pair.service.set_scrubs(ScrubSet(weekly=True))
    assert pair.service.scrubs.due() is None, "the first scrubs are due in a week"
    pair.service.scrubs.begin("hung", 1 << 20)
    wait_until(lambda: "scrub" in pair.world.names(), "the scrub that hangs", 10)
    assert pair.service.scrubs.end("hung").state == "running"
    pair.service._context.steady = lambda: 1 << 62
    assert pair.service.scrubs.due() is None
    monkeypatch.setattr(scrub, "HUNG_S", 0.0)
    due = pair.service.scrubs.due()
    assert due is not None
    assert due.name == "well"
    event.set()


def test_paths_that_do_not_answer_are_told_in_the_list_of_devices(
    pair: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    look = identity_of_path

    def identity_of(path: Path) -> object:
        if path.name == "hung.img":
            go_on.wait(30)
        return look(path)

    monkeypatch.setattr(device_files, "identity_of", identity_of)
    began = time.monotonic()
    shown = {device.name: device for device in pair.service.status().devices}
    assert time.monotonic() - began < 10
    assert "hung.img does not answer" in str(shown["hung-disk"].reason)
    assert shown["well-disk"].reason is None
    go_on.set()


def test_a_stop_that_hangs_ends_and_keeps_the_devices_held(
    pair: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ENGINE_S", 0.1)
    context = pair.service._context
    pair.world.hold["stop"] = go_on = threading.Event()
    with pytest.raises(StopUnfinished, match="ends, and a device does not answer"):
        pair.service.stop()
    assert context.files, "what may be written still is held"
    go_on.set()
    wait_until(
        lambda: all(thread.name != "polyvol-stop" for thread in threading.enumerate()), "the end of it", 10
    )
    device_files.close_all(context)
    context.catalog.close()


def test_engine_calls_that_may_wait_refuse_to_run_under_changes(pair: Daemon) -> None:
    context = pair.service._context
    with context.catalog_lock, pytest.raises(AssertionError):
        context.engine.flush(WELL)
    with context.catalog_lock:
        context.engine.stats()


def test_a_name_and_a_device_are_taken_by_who_asks_first(pair: Daemon) -> None:
    options = ("--device", "well-disk", "--log-device", "well-disk")
    with hangs(pair, "volume", "create", "new", "--size", "1M", *options, at=("add_volume", WELL + 1)):
        assert "volume new exists already" in pair.refused("volume", "create", "new", "--size", "1M")
        assert "volume new has been busy with volume create" in _refused_soon(pair, "volume", "delete", "new")
        for verb in (["snapshot", "create", "new"], ["group", "create", "g", "new"], ["scrub", "new"]):
            assert "volume new has been busy with volume create" in pair.refused(*verb)
        assert "is used by volume" in pair.refused("device", "remove", "well-disk")
    pair.ok("volume", "delete", "new", "--yes")


def _refused_soon(daemon: Daemon, *arguments: str) -> str:
    daemon.service._context.locks.wait_s = 0.05
    return daemon.refused(*arguments, "--yes")
