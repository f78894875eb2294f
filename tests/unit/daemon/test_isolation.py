"""One bad object never keeps the others down: at a start, at a reload, in the background threads."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyvol.daemon.config import Config
from polyvol.daemon.devices import files as device_files, start as device_start, verbs as devices
from polyvol.daemon.devices.udev import DiskWatch
from polyvol.daemon.host.signals import ENDING, RELOADING
from polyvol.daemon.isolation import DEFECT, isolate
from polyvol.daemon.process import main_loop
from polyvol.daemon.schedules import facts
from polyvol.daemon.service import Service
from polyvol.daemon.space.change_logs import SpaceMonitor
from polyvol.daemon.types.scrubs import ScrubSet
from polyvol.daemon.volumes import manifest_digests, scrub
from polyvol.mapping.device import trouble_with
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.volumes import Volume
from tests.support.proc import wait_until
from tests.support.sim_engine import SimEngine
from tests.unit.conftest import Daemon


class Unexpected(Exception):
    """What nobody expects."""


@pytest.fixture
def two(daemon: Daemon, tmp_path: Path) -> Daemon:
    """Devices a and b, in directories of their own, each with a volume of its name, which has a snapshot."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        daemon.ok("device", "add", str(tmp_path / name / "disk"), "--name", name, "--size", "8M")
        daemon.ok("volume", "create", name, "--size", "1M", "--device", name)
        daemon.ok("snapshot", "create", name, "--name", "s")
    return daemon


def events(daemon: Daemon) -> list[str]:
    return [each.text for each in daemon.service._context.events.latest()]


def exports(daemon: Daemon) -> list[str]:
    return [each["name"] for each in daemon.service.exports()]


def device(daemon: Daemon, name: str) -> tuple[str, str | None]:
    found = next(each for each in json.loads(daemon.ok("device", "list", "--json")) if each["name"] == name)
    return found["state"], found["reason"]


def failing(call: Callable[..., Any], bad: Callable[..., bool]) -> Callable[..., Any]:
    """A call that raises what nobody expects for some arguments."""

    def called(*arguments: Any, **named: Any) -> Any:
        if bad(*arguments, **named):
            raise Unexpected
        return call(*arguments, **named)

    return called


def is_a(*arguments: object, **_: object) -> bool:
    """Whether a call is about device or volume a."""
    return any(isinstance(each, Device | Volume) and each.name == "a" for each in arguments)


def test_every_error_ends_in_the_body_and_the_end_of_the_process_does_not(daemon: Daemon) -> None:
    context = daemon.service._context
    for error in (Unexpected("x"), KeyError("x"), OSError(5, "Input/output error", "/x"), StopIteration()):
        with isolate(context, f"doing {type(error).__name__}"):
            raise error
    assert [text.split(" failed: ")[1] for text in events(daemon)[:3]] == [
        DEFECT,
        DEFECT,
        "/x: input/output error",
    ]
    with pytest.raises(KeyboardInterrupt), isolate(context, "being told to end"):
        raise KeyboardInterrupt
    for _ in range(3):
        with isolate(context, "trying again and again"):
            raise Unexpected
    assert sum("again and again" in text for text in events(daemon)) == 1


# A start


@pytest.mark.parametrize(
    ("where", "name"),
    [(device_start, "open_checked"), (device_files, "write_label"), (SimEngine, "open_device")],
)
def test_a_device_that_a_start_cannot_take_is_missing_alone(
    two: Daemon, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    two.service.stop()
    bad = is_a if where is not SimEngine else lambda _, identity, *__, **___: identity == 1
    monkeypatch.setattr(where, name, failing(getattr(where, name), bad))
    two.start()
    assert device(two, "b")[0] == "ok"
    assert device(two, "a")[0] == ("ok" if name == "write_label" else "missing")
    assert exports(two) == ["a", "a@s", "b", "b@s"]
    assert any("device a" in text and DEFECT in text for text in events(two))
    monkeypatch.undo()
    two.service.reload()
    assert device(two, "a") == ("ok", None)


def test_a_device_that_not_even_the_engine_can_leave_out_takes_down_its_volume_alone(
    two: Daemon, tmp_path: Path
) -> None:
    two.service.stop()
    (tmp_path / "a" / "disk").rename(tmp_path / "moved")
    two.world.fail["absent_device"] = 0
    two.start()
    assert exports(two) == ["b", "b@s"]
    two.world.fail.clear()


@pytest.mark.parametrize("place", ["a file", "a loop of links", "a link of others", "not to be searched"])
def test_a_device_whose_path_has_become_bad_is_missing_alone(two: Daemon, tmp_path: Path, place: str) -> None:
    two.service.stop()
    directory, moved = tmp_path / "a", tmp_path / "moved"
    directory.rename(moved)
    if place == "a file":
        directory.write_bytes(b"")
    elif place == "a loop of links":
        directory.symlink_to(directory)
    elif place == "a link of others":
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        directory.symlink_to(moved)
        os.chown(directory, 65534, 65534, follow_symlinks=False)
    else:
        directory.symlink_to("/proc/1/task/1/attr/nothing")
    two.start()
    state, reason = device(two, "a")
    assert (state, device(two, "b")[0]) == ("missing", "ok")
    assert reason
    assert "b" in exports(two)
    assert any("device a is missing" in text for text in events(two))


@pytest.mark.parametrize("name", ["add_volume", "ask_when_full", "export"])
def test_a_volume_that_a_start_cannot_serve_is_not_served_alone(
    two: Daemon, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    two.service.stop()

    def bad(_: object, first: Any, *__: object, **___: object) -> bool:
        return (first["name"] if isinstance(first, dict) else first) in ("a", 1)

    monkeypatch.setattr(SimEngine, name, failing(getattr(SimEngine, name), bad))
    two.start()
    assert exports(two) == ["b", "b@s"]
    shown = json.loads(two.ok("volume", "show", "a", "--json"))
    assert (shown["state"], shown["reason"]) == ("not-served", DEFECT)
    assert f"volume a is not served: {DEFECT}" in events(two)
    two.service.reload()
    assert exports(two) == ["b", "b@s"]
    monkeypatch.undo()
    two.service.reload()
    assert exports(two) == ["a", "a@s", "b", "b@s"]


def test_a_snapshot_that_a_start_cannot_export_is_not_exported_alone(
    two: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.service.stop()
    monkeypatch.setattr(SimEngine, "export", failing(SimEngine.export, lambda _, name, *__: name == "a@s"))
    two.start()
    assert exports(two) == ["a", "b", "b@s"]
    assert f"exporting snapshot a@s failed: {DEFECT}" in events(two)
    monkeypatch.undo()
    two.service.reload()
    assert exports(two) == ["a", "a@s", "b", "b@s"]


def test_a_snapshot_that_is_not_exported_can_be_deleted(two: Daemon) -> None:
    two.service.stop()
    two.world.fail["export"] = 1
    two.start()
    two.world.fail.clear()
    assert exports(two) == ["a"]
    two.ok("snapshot", "delete", "a@s")


def test_manifests_that_cannot_be_looked_at_keep_no_start_and_no_stop_from_ending(
    two: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = manifest_digests._digests

    def read(directory: Path) -> dict[str, str]:
        if directory.name == uuid:
            raise Unexpected
        return digests(directory)

    uuid = json.loads(two.ok("volume", "show", "a", "--json"))["uuid"]
    monkeypatch.setattr(manifest_digests, "_digests", read)
    two.restart()
    two.restart()
    assert "b" in exports(two)


@pytest.mark.parametrize("state", ["creating", "deleting"])
def test_a_volume_that_cannot_be_removed_keeps_no_start_from_serving(
    two: Daemon, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    two.service._context.catalog.volumes.set_state(VolumeId(1), state)
    two.service.stop()
    directory = two.service._context.volume_directory
    monkeypatch.setattr(
        type(two.service._context), "volume_directory", failing(lambda _, volume: directory(volume), is_a)
    )
    two.start()
    assert exports(two) == ["b", "b@s"]
    assert any("volume a, which is deleted," in text and DEFECT in text for text in events(two))
    monkeypatch.undo()
    two.service.reload()
    assert [each["name"] for each in json.loads(two.ok("volume", "list", "--json"))] == ["b"]


def test_a_thaw_that_cannot_be_run_keeps_no_start_from_serving(two: Daemon) -> None:
    hooks = two.service._context.catalog.hooks
    hooks.owe_thaw(["not", "a", "call"])
    hooks.owe_thaw({"what": "volume a"})
    two.restart()
    assert "b" in exports(two)
    assert len(catalog_thaws(two)) == 2


def catalog_thaws(daemon: Daemon) -> dict[int, object]:
    return daemon.service._context.catalog.hooks.thaws_owed()


# Half-made devices


@pytest.mark.parametrize("state", ["adding", "removing"])
def test_a_half_made_device_is_shown_as_such_and_nothing_is_placed_on_it(
    daemon: Daemon, tmp_path: Path, state: Any
) -> None:
    daemon.ok("device", "add", str(tmp_path / "d"), "--size", "8M")
    catalog = daemon.service._context.catalog
    catalog.devices.set_state(VolumeId(1), state)
    assert device(daemon, "d")[0] == state
    refusal = daemon.refused("volume", "create", "v", "--size", "1M", "--device", "d")
    assert "device d cannot be used: it is being" in refusal
    assert "device d cannot be used" in daemon.refused("device", "retry", "d")
    daemon.ok("device", "remove", "d")
    assert json.loads(daemon.ok("device", "list", "--json")) == []
    assert (tmp_path / "d").exists() == (state == "removing")


@pytest.mark.parametrize("by", ["add", "reload", "start"])
def test_a_half_added_device_is_undone_with_its_file(daemon: Daemon, tmp_path: Path, by: str) -> None:
    daemon.ok("device", "add", str(tmp_path / "d"), "--size", "8M")
    daemon.service._context.catalog.devices.set_state(1, "adding")
    if by == "add":
        daemon.ok("device", "add", str(tmp_path / "e"), "--size", "8M")
    elif by == "reload":
        daemon.service.reload()
    else:
        daemon.restart()
    assert "d" not in [each["name"] for each in json.loads(daemon.ok("device", "list", "--json"))]
    assert not (tmp_path / "d").exists()
    daemon.ok("device", "add", str(tmp_path / "d"), "--size", "8M")


def test_a_file_that_was_there_before_stays_when_its_adding_is_undone(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "d").touch()
    daemon.ok("device", "add", str(tmp_path / "d"), "--size", "8M")
    daemon.service._context.catalog.devices.set_state(1, "adding")
    daemon.restart()
    assert (tmp_path / "d").exists()
    daemon.ok("device", "add", str(tmp_path / "d"))


@pytest.mark.parametrize("state", ["adding", "removing"])
def test_a_half_made_device_with_volumes_on_it_stops_no_start(two: Daemon, state: Any) -> None:
    two.service._context.catalog.devices.set_state(VolumeId(1), state)
    assert "used by" in two.refused("device", "remove", "a")
    two.restart()
    assert device(two, "a") == ("ok", None)
    assert exports(two) == ["a", "a@s", "b", "b@s"]
    assert any("device a" in text and "volumes have extents on it" in text for text in events(two))


# A reload, news of disks, and the background threads


def test_a_reload_that_fails_unexpectedly_ends_nothing(two: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = iter([int(RELOADING), int(RELOADING), *map(int, ENDING)])
    monkeypatch.setattr(main_loop, "next_signal", lambda _: next(signals))
    monkeypatch.setattr(Service, "reload", failing(Service.reload, lambda *_: True))
    main_loop.run(two.service, lambda: Config(two.state_dir))
    monkeypatch.setattr(Service, "summary", failing(Service.summary, lambda *_: True))
    signals = iter([0, *map(int, ENDING)])
    main_loop.run(two.service, lambda: Config(two.state_dir))


def test_a_device_that_a_reload_cannot_look_at_keeps_no_other_away(
    two: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.service.stop()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / f"{name}-moved")
    two.start()
    for name in ("a", "b"):
        (tmp_path / f"{name}-moved").rename(tmp_path / name)
    monkeypatch.setattr(devices, "open_checked", failing(device_files.open_checked, is_a))
    two.service.reload()
    assert (device(two, "a")[0], device(two, "b")[0]) == ("missing", "ok")
    monkeypatch.undo()
    monkeypatch.setattr(devices, "trouble_with", failing(trouble_with, is_a))
    (tmp_path / "b" / "disk").rename(tmp_path / "b" / "other")
    assert two.service.device_found(tmp_path / "b" / "other") is None  # it is not missing
    assert device(two, "b")[0] == "ok"


def test_news_of_a_disk_that_fail_unexpectedly_do_not_end_the_watch() -> None:
    def came(path: Path) -> None:
        raise Unexpected(path)

    class Disk:
        action, device_node, device_number = "add", "/dev/nothing", 1

    disks: Any = DiskWatch(lambda number: None, came)
    disks._observed(Disk())
    Disk.device_number = "no number"  # type: ignore[assignment]
    disks._observed(Disk())


def test_a_scrub_that_fails_unexpectedly_has_ended_and_the_weekly_ones_go_on(
    two: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimEngine, "scrub", failing(SimEngine.scrub, lambda _, volume, *__: volume == 1))
    scrubs = two.service.scrubs
    scrubs.begin("a", 1 << 30)
    wait_until(lambda: scrubs.show("a").state != "running", "the end of a scrub", 10)
    assert (scrubs.show("a").state, scrubs.show("a").reason) == ("failed", DEFECT)
    monkeypatch.setattr(scrub.Scrubs, "_due", failing(scrub.Scrubs._due, is_a))
    two.service.set_scrubs(ScrubSet(weekly=True))
    assert scrubs.due() is None  # neither is: both are new
    for each in two.service._context.catalog.volumes.all():
        scrubs._due_at[each.id] = 0
    found = scrubs.due()
    assert found is None or found.name == "b"
    assert any("weekly scrub of volume a" in text for text in events(two))
    assert scrubs._weekly_thread.is_alive()


def test_a_volume_whose_logs_cannot_be_looked_at_keeps_no_other_from_it(
    two: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = two.service._context
    space = SpaceMonitor(context, two.service.snapshots)
    context.fill_levels.clear()
    monkeypatch.setattr(SimEngine, "space", failing(SimEngine.space, lambda _, volume: volume == 1))
    space.sample()
    assert 2 in context.fill_levels
    assert any("change logs of volume a" in text and DEFECT in text for text in events(two))


def test_a_schedule_that_cannot_be_looked_at_keeps_no_other_waiting(
    two: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        two.ok("schedule", "add", name, "--every", "1h", "--keep", "last=2", "--name", name)
    schedules: Any = two.service.schedules

    def timing(schedule: Any) -> Any:
        if schedule.name == "a":
            raise Unexpected
        return made(schedule)

    made = facts.timing_of
    monkeypatch.setattr("polyvol.daemon.schedules.verbs.timing_of", timing)
    schedules._dues.forget(1)
    assert schedules.run_due() is not None
    assert any("schedule a" in text and DEFECT in text for text in events(two))


def test_the_thread_of_deletions_outlives_a_catalog_that_cannot_be_read(
    two: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletions: Any = two.service.deletions
    rollbacks = type(two.service._context.catalog.rollbacks)
    monkeypatch.setattr(rollbacks, "volumes", failing(rollbacks.volumes, lambda *_: True))
    two.ok("snapshot", "delete", "a@s*")
    wait_until(lambda: any("looking for rollbacks" in text for text in events(two)), "an event", 10)
    assert deletions._thread.is_alive()
    monkeypatch.undo()
    two.ok("snapshot", "create", "b", "--name", "t")
    two.ok("snapshot", "delete", "b@s*", "b@t")
    wait_until(lambda: two.service.deletions.show("b").left == 0, "the deletions", 10)


# Names that are used again


def test_what_was_kept_for_clones_goes_with_them_though_its_name_is_used_again(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    daemon.ok("volume", "clone", "v@s", "c")
    daemon.ok("volume", "delete", "v", "--yes")
    daemon.ok("volume", "create", "v", "--size", "2M")
    daemon.service.engine.open("v").pwrite(b"new", 0)
    daemon.ok("volume", "delete", "c", "--yes")
    found = daemon.service.volumes.list_all(kept=True)
    assert [(each.name, each.state, each.size) for each in found] == [("v", "serving", 2 << 20)]
    assert {each.made_for for each in daemon.service.devices.list_all()} == {"v"}
    assert daemon.service.engine.open("v").pread(3, 0) == b"new"


@pytest.mark.slow
def test_what_was_kept_and_could_not_be_removed_is_tried_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("v", "w"):
        daemon.ok("volume", "create", name, "--size", "1M")
        daemon.ok("snapshot", "create", name, "--name", "s")
        daemon.ok("volume", "clone", f"{name}@s", f"{name}c")
        daemon.ok("volume", "delete", name, "--yes")
        daemon.ok("volume", "create", name, "--size", "1M")
    monkeypatch.setattr(shutil, "rmtree", failing(shutil.rmtree, lambda *_: True))
    daemon.refused("volume", "delete", "vc", "--yes")
    monkeypatch.undo()
    daemon.ok("volume", "delete", "wc", "--yes")
    daemon.service.reload()
    assert [each.name for each in daemon.service.volumes.list_all(kept=True)] == ["v", "w"]
