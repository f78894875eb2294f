"""Renames: what has another name afterwards, what is refused, and that a failure leaves the old name."""

import json
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from polyvol.daemon.client.attach.records import ROOT_VARIABLE, Attached, Places, Wanted
from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.restores.verbs import HIDDEN
from polyvol.mapping.catalog.renames import Renames
from polyvol.mapping.errors import CatalogFailed
from tests.support.sim_checks import EngineError
from tests.support.sim_engine import SimEngine
from tests.unit.conftest import Daemon

ODD_NAMES = ("", ".b", "-b", "a@b", "a/b", "b ", "b#1", "é", "b\n", "x" * 65)


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    daemon.ok("volume", "create", "a", "--size", "4M")
    daemon.ok("snapshot", "create", "a", "--name", "s")
    return daemon


def exports(daemon: Daemon) -> set[str]:
    return {export["name"] for export in daemon.service.exports()}


def said(daemon: Daemon, *arguments: str) -> Any:
    return json.loads(daemon.ok(*arguments, "--json"))


def add_schedule(daemon: Daemon, name: str = "daily", target: str = "a") -> None:
    options = ("--every", "1d", "--keep", "last=1", "--name", name)
    daemon.ok("schedule", "add", target, *options)


def everything(daemon: Daemon) -> Any:
    """What the API shows, but for what moves with the time."""
    client = Client(daemon.state_dir)
    found = [client.get(noun) for noun in ("volumes", "snapshots", "devices", "groups", "schedules")]
    for volume in found[0]:
        volume.pop("space")
    return found


# Volumes


def test_a_volume_is_renamed_with_its_snapshots(used: Daemon) -> None:
    uuid = said(used, "volume", "show", "a")["uuid"]
    text = used.ok("volume", "rename", "a", "b")
    assert text == "volume a was renamed to b, with 1 snapshot\n"
    for _ in range(2):
        assert exports(used) == {"b", "b@s"}
        shown = said(used, "volume", "show", "b")
        assert (shown["uuid"], shown["snapshots"], shown["state"]) == (uuid, ["s"], "serving")
        assert "there is no volume 'a'" in used.refused("volume", "show", "a")
        used.restart()


def test_the_answer_names_the_exports(used: Daemon) -> None:
    assert said(used, "volume", "rename", "a", "b") == {
        "noun": "volume",
        "old": "a",
        "name": "b",
        "exports": [{"old": "a", "name": "b"}, {"old": "a@s", "name": "b@s"}],
        "not_following": [],
    }
    assert any("volume a was renamed to b" in each.text for each in used.service.status().events)


def test_the_engine_names_it_by_its_new_name_too(used: Daemon) -> None:
    used.ok("volume", "rename", "a", "b")
    engine = used.service._context.engine._engine  # type: ignore[attr-defined]
    assert isinstance(engine, SimEngine)
    assert [each.spec["name"] for each in engine.volumes.values()] == ["b"]


def test_names_are_swapped_by_a_third_and_used_again(used: Daemon) -> None:
    used.ok("volume", "create", "b", "--size", "8M")
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        used.ok("volume", "rename", old, new)
    assert exports(used) == {"a", "b", "b@s"}
    assert (said(used, "volume", "show", "a")["size"], said(used, "volume", "show", "b")["size"]) == (
        8 << 20,
        4 << 20,
    )
    used.ok("volume", "rename", "a", "c")
    used.ok("volume", "create", "a", "--size", "4M")
    used.ok("snapshot", "create", "a", "--name", "s")
    assert exports(used) == {"a", "a@s", "b", "b@s", "c"}


@pytest.mark.parametrize("export", ["a", "a@s"])
def test_a_volume_with_clients_is_not_renamed(used: Daemon, export: str) -> None:
    before = everything(used)
    handle = used.service.engine.open(export)
    assert "volume a is in use by 1 client" in used.refused("volume", "rename", "a", "b")
    assert "unexport" not in used.world.names()  # others may connect all the time
    handle.close()
    assert everything(used) == before
    used.ok("volume", "rename", "a", "b")


@pytest.mark.parametrize("export", ["a", "a@s", "a@t"])
def test_a_client_that_comes_in_between_stays_where_it_is(
    used: Daemon, monkeypatch: pytest.MonkeyPatch, export: str
) -> None:
    used.ok("snapshot", "create", "a", "--name", "t")
    real = SimEngine.unexport
    came: list[Any] = []

    def unexport(engine: SimEngine, name: str) -> None:
        if name == export and not came:
            came.append(engine.open(export))
        real(engine, name)

    monkeypatch.setattr(SimEngine, "unexport", unexport)
    assert "volume a is in use by 1 client" in used.refused("volume", "rename", "a", "b")
    assert exports(used) == {"a", "a@s", "a@t"}
    assert said(used, "volume", "show", "a")["connections"] == 1
    came[0].close()


def test_names_that_create_refuses_are_refused(grouped: Daemon) -> None:
    add_schedule(grouped)
    grouped.ok("snapshot", "create", "a", "--name", "t")
    before = everything(grouped)
    for path in (
        ("volumes", "a"),
        ("devices", "a.data"),
        ("groups", "g"),
        ("schedules", "daily"),
        ("volumes", "a", "snapshots", "t"),
        ("groups", "g", "snapshots", "s"),
    ):
        for name in ODD_NAMES:
            with pytest.raises(ApiError) as caught:
                Client(grouped.state_dir).post(*path, "rename", body={"name": name})
            assert caught.value.code == "bad-name"
    assert everything(grouped) == before


def test_a_name_that_another_takes_just_now_is_refused(used: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SimEngine.unexport

    def unexport(engine: SimEngine, name: str) -> None:
        monkeypatch.setattr(SimEngine, "unexport", real)
        create = threading.Thread(target=used.ok, args=("volume", "create", "b", "--size", "4M"))
        create.start()
        create.join(20)
        real(engine, name)

    monkeypatch.setattr(SimEngine, "unexport", unexport)
    assert "volume b exists already" in used.refused("volume", "rename", "a", "b")
    assert exports(used) == {"a", "a@s", "b"}


def test_case_matters_as_in_create(used: Daemon) -> None:
    used.ok("volume", "rename", "a", "A")
    used.ok("volume", "create", "a", "--size", "4M")
    assert exports(used) == {"a", "A", "A@s"}


REFUSED = [
    (("volume", "rename", "a", "b"), "volume b exists already"),
    (("volume", "rename", "a", "a"), "volume a exists already"),
    (("volume", "rename", "x", "y"), "there is no volume 'x'"),
    (("snapshot", "rename", "a@t", "s"), "snapshot a@s exists already"),
    (("snapshot", "rename", "a@t", "t"), "snapshot a@t exists already"),
    (("snapshot", "rename", "a@s", "n"), "snapshot a@s is part of @g@s; name @g@s"),
    (("snapshot", "rename", "a@x", "n"), "there is no snapshot 'x' of volume a"),
    (("snapshot", "rename", "x@s", "n"), "there is no volume 'x'"),
    (("snapshot", "rename", "@g@s", "t"), "snapshot a@t exists already"),
    (("snapshot", "rename", "@g@s", "s"), "snapshot @g@s exists already"),
    (("snapshot", "rename", "@g@x", "t"), "there is no snapshot 'x' of group g"),
    (("snapshot", "rename", "@x@s", "t"), "there is no group 'x'"),
    (("snapshot", "rename", "a@t", "b@u"), "a renamed snapshot stays one of a"),
    (("snapshot", "rename", "@g@s", "a@u"), "a renamed snapshot stays one of @g"),
    (("snapshot", "rename", "a", "b"), "it names a volume alone"),
    (("group", "rename", "g", "h"), "group h exists already"),
    (("group", "rename", "g", "g"), "group g exists already"),
    (("group", "rename", "x", "y"), "there is no group 'x'"),
    (("device", "rename", "a.data", "b.data"), "device b.data exists already"),
    (("device", "rename", "a.data", "a.data"), "device a.data exists already"),
    (("device", "rename", "x", "y"), "there is no device 'x'"),
    (("schedule", "rename", "daily", "daily"), "schedule daily exists already"),
    (("schedule", "rename", "x", "y"), "there is no schedule 'x'"),
]


def test_what_is_taken_or_unknown_is_refused(grouped: Daemon) -> None:
    grouped.ok("snapshot", "create", "a", "--name", "t")
    grouped.ok("group", "create", "h")
    add_schedule(grouped)
    before = everything(grouped)
    for arguments, message in REFUSED:
        assert message in grouped.refused(*arguments)
    assert everything(grouped) == before


def test_the_name_of_a_volume_that_is_still_being_deleted_is_taken(used: Daemon) -> None:
    used.ok("volume", "create", "b", "--size", "4M")
    used.world.fail["remove_volume"] = 0
    used.refused("volume", "delete", "b", "--yes")
    assert "volume b exists already" in used.refused("volume", "rename", "a", "b")
    assert "is not served" in used.refused("volume", "rename", "b", "c")
    assert exports(used) == {"a", "a@s"}
    used.world.fail.clear()


def test_what_is_kept_for_a_clone_neither_has_a_name_nor_gets_one(used: Daemon) -> None:
    used.ok("volume", "clone", "a@s", "b")
    used.ok("volume", "delete", "a", "--yes")
    used.ok("volume", "rename", "b", "a")
    assert said(used, "volume", "show", "a")["source"] == {"volume": "a", "snapshot": "s", "deleted": True}
    [kept] = [each for each in said(used, "volume", "list", "--all") if each["state"] == "kept"]
    with pytest.raises(ApiError) as caught:
        Client(used.state_dir).post("volumes", kept["name"], "rename", body={"name": "c"})
    assert caught.value.code == "unknown-volume"


def test_a_clone_names_its_source_by_the_new_name(used: Daemon) -> None:
    used.ok("volume", "clone", "a@s", "b")
    used.ok("volume", "rename", "a", "c")
    used.ok("snapshot", "rename", "c@s", "t")
    assert said(used, "volume", "show", "b")["source"] == {"volume": "c", "snapshot": "t", "deleted": False}
    assert said(used, "snapshot", "show", "c@t")["clones"] == ["b"]
    used.ok("volume", "rename", "b", "d")
    assert said(used, "snapshot", "show", "c@t")["clones"] == ["d"]
    used.restart()
    assert exports(used) == {"c", "c@t", "d"}


def test_a_failure_of_the_catalog_leaves_the_old_name(
    grouped: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CatalogFailed(path="catalog.db", why="its disk is full")

    add_schedule(grouped)
    before = everything(grouped)
    for verb in ("volume", "snapshots", "device", "group", "schedule"):
        monkeypatch.setattr(Renames, verb, fail)
    for arguments in (
        ("volume", "rename", "a", "c"),
        ("snapshot", "rename", "@g@s", "t"),
        ("group", "rename", "g", "h"),
        ("device", "rename", "a.data", "d"),
        ("schedule", "rename", "daily", "d"),
    ):
        assert "its disk is full" in grouped.refused(*arguments)
        assert everything(grouped) == before
        assert exports(grouped) == {"a", "b", "a@s", "b@s"}


def test_a_commit_that_was_made_although_it_failed_gives_the_new_name(
    used: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Renames.volume

    def late(renames: Renames, volume: int, name: str) -> None:
        real(renames, volume, name)
        raise CatalogFailed(path="catalog.db", why="its disk is full")

    monkeypatch.setattr(Renames, "volume", late)
    used.refused("volume", "rename", "a", "b")
    assert exports(used) == {"b", "b@s"}
    assert said(used, "volume", "show", "b")["state"] == "serving"


def test_an_export_that_cannot_be_made_has_the_volume_taken_over_again(
    used: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SimEngine.export
    failed: list[str] = []

    def export(engine: SimEngine, name: str, *arguments: Any) -> None:
        if name == "b" and not failed:
            failed.append(name)
            raise EngineError("io", "it cannot be exported", 5)
        real(engine, name, *arguments)

    monkeypatch.setattr(SimEngine, "export", export)
    used.ok("volume", "rename", "a", "b")
    assert failed == ["b"]
    assert exports(used) == {"b", "b@s"}
    assert said(used, "volume", "show", "b")["state"] == "serving"


def test_a_volume_that_is_not_served_is_renamed(used: Daemon) -> None:
    used.world.fail["add_volume"] = 0
    used.restart()
    assert said(used, "volume", "show", "a")["state"] == "not-served"
    used.ok("snapshot", "rename", "a@s", "t")
    used.ok("volume", "rename", "a", "broken")
    shown = said(used, "volume", "show", "broken")
    assert shown["state"] == "not-served"
    assert "volume broken" in shown["reason"]
    used.world.fail.clear()
    used.ok("volume", "create", "a", "--size", "4M")
    used.service.reload()
    assert exports(used) == {"a", "broken", "broken@t"}


# Restores


def restore(daemon: Daemon, volume: str, base: str | None = None, *, resume: bool = False) -> Any:
    uuid = None if base is None else said(daemon, "snapshot", "show", f"{volume}@{base}")["uuid"]
    body = {"volume": volume, "source": "/b/1", "stream": str(uuid4()), "size": 4 << 20, "snapshot": "r"}
    body |= {"snapshot_uuid": str(uuid4()), "base": base, "base_uuid": uuid, "resume": resume}
    return Client(daemon.state_dir).post("restores", body=body)


def test_what_is_being_restored_is_not_renamed_and_its_name_is_taken(used: Daemon) -> None:
    used.ok("volume", "create", "c", "--size", "4M")
    restore(used, "a", "s")
    restore(used, "b")
    for arguments in (("volume", "rename", "a", "x"), ("snapshot", "rename", "a@s", "x")):
        assert "volume a is being restored from /b/1" in used.refused(*arguments)
    assert "volume b is being restored" in used.refused("volume", "rename", "b", "x")
    assert "volume b exists already" in used.refused("volume", "rename", "c", "b")
    found = {each["name"].partition(HIDDEN)[0] for each in used.service.engine.exports() if each["hidden"]}
    assert found == {"a", "b"}


# Snapshots


@pytest.mark.parametrize("new", ["t", "a@t"])
def test_a_snapshot_is_renamed(used: Daemon, new: str) -> None:
    used.ok("volume", "create", "b", "--size", "4M")
    used.ok("snapshot", "create", "b", "--name", "t")
    used.ok("snapshot", "hold", "a@s", "--tag", "x")
    uuid = said(used, "snapshot", "show", "a@s")["uuid"]
    assert used.ok("snapshot", "rename", "a@s", new) == "snapshot a@s was renamed to a@t\n"
    for _ in range(2):
        assert exports(used) == {"a", "a@t", "b", "b@t"}
        shown = said(used, "snapshot", "show", "a@t")
        assert (shown["uuid"], shown["holds"]) == (uuid, ["x"])
        used.restart()
    used.ok("snapshot", "create", "a", "--name", "s")
    used.ok("snapshot", "rollback", "a@t")


def test_a_snapshot_with_clients_is_not_renamed_and_those_of_the_volume_do_not_matter(used: Daemon) -> None:
    live, handle = (used.service.engine.open(name) for name in ("a", "a@s"))
    assert "snapshot a@s is in use by 1 client" in used.refused("snapshot", "rename", "a@s", "t")
    handle.close()
    used.ok("snapshot", "rename", "a@s", "t")
    assert said(used, "volume", "show", "a")["connections"] == 1
    live.close()


# Devices


def test_a_device_is_renamed_whether_it_is_there_or_not(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "d.img"
    daemon.ok("device", "add", str(path), "--size", "1G", "--name", "d")
    daemon.ok("volume", "create", "a", "--size", "4M", "--device", "d", "--log-device", "d")
    assert daemon.ok("device", "rename", "d", "e") == "device d was renamed to e\n"
    daemon.service.stop()
    moved = path.rename(tmp_path / "moved.img")
    daemon.start()
    daemon.ok("device", "rename", "e", "f")
    shown = said(daemon, "device", "show", "f")
    assert (shown["state"], shown["volumes"]) == ("missing", ["a"])
    assert "device f" in said(daemon, "volume", "show", "a")["reason"]
    daemon.ok("device", "retry", "f", "--path", str(moved))
    assert said(daemon, "volume", "show", "a")["state"] == "serving"


def test_the_file_of_a_renamed_device_is_not_used_by_a_new_one(used: Daemon) -> None:
    used.ok("volume", "rename", "a", "b")
    names = [each["name"] for each in said(used, "device", "list")]
    assert all(name.startswith("a.") for name in names)
    for name in names:
        used.ok("device", "rename", name, name.replace("a.", "b."))
    used.ok("volume", "create", "a", "--size", "4M")
    paths = [each["path"] for each in said(used, "device", "list")]
    assert len(paths) == len(set(paths)) == 2 * len(names)
    used.restart()
    assert {each["state"] for each in said(used, "volume", "list")} == {"serving"}


# What does not follow


def test_what_this_host_has_by_the_old_name_is_listed(
    used: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "root"))
    places = Places.default()
    here = f"?socket={used.state_dir / 'nbd.sock'}"
    places.write(Wanted(name="a", uri=f"nbd+unix:///a{here}"))
    places.write(Attached(name="x", device="nbd0", kind="nbd", size=1, flags=0, uri=f"nbd+unix:///a@s{here}"))
    places.write(Wanted(name="far", uri="nbd://example.org/a"))
    places.write(Wanted(name="other", uri="nbd+unix:///a?socket=/run/another.sock"))
    places.write(Wanted(name="b", uri=f"nbd+unix:///b{here}"))
    (tmp_path / "root/etc/polyvol/attached/bad.json").write_text("{")
    for unit in ("polyvol-snapshot@a.timer", "polyvol-scrub@a.timer", "polyvol-scrub@b.timer"):
        link = tmp_path / "root/etc/systemd/system/timers.target.wants" / unit
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/lib/systemd/system/polyvol-scrub@.timer")
    found = said(used, "volume", "rename", "a", "c")["not_following"]
    assert [(each["what"].split(" (")[0], each["old"]) for each in found] == [
        ("attachment a", "a"),
        ("attachment bad", "-"),
        ("attachment far", "a"),
        ("attachment x", "a@s"),
        ("timer polyvol-snapshot@a.timer", "a"),
        ("timer polyvol-scrub@a.timer", "a"),
    ]
    result = used.run("volume", "rename", "c", "a")
    assert result.stdout == "volume c was renamed to a, with 1 snapshot\n"
    assert "warning: attachment bad" in result.stderr
    assert "warning: attachment x" not in result.stderr
    used.ok("volume", "rename", "a", "c")
    result = used.run("snapshot", "rename", "c@s", "t")
    assert "attachment x" not in result.stderr  # it has a@s
