"""What changes while hooks run: no cut is made of anything else, one sentence says why, and all is thawed."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.context import Context
from tests.support.proc import wait_until
from tests.unit.conftest import Daemon

MIB = 1 << 20


@dataclass
class Prepared:
    """A daemon whose volume v has a quiesce command that waits to be released."""

    daemon: Daemon
    directory: Path

    @property
    def api(self) -> Client:
        return Client(self.daemon.state_dir)

    @property
    def context(self) -> Context:
        return self.daemon.service._context

    def noted(self) -> list[str]:
        notes = self.directory / "notes"
        return notes.read_text().split() if notes.exists() else []

    def during(self, begin: Callable[[], object], change: Callable[[], object]) -> ApiError | None:
        """The error of `begin`, with `change` done while its hooks run."""
        errors: list[ApiError | None] = []
        before = len(self.noted())

        def run() -> None:
            try:
                begin()
                errors.append(None)
            except ApiError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: len(self.noted()) > before, "the quiesce command", 10)
        try:
            change()
        finally:
            (self.directory / "go").touch()
            thread.join(20)
            (self.directory / "go").unlink()
        [error] = errors
        return error

    def cuts(self) -> int:
        return sum(call[0] == "cut" for call in self.daemon.world.calls)


@pytest.fixture
def prepared(daemon: Daemon, tmp_path: Path) -> Prepared:
    found = Prepared(daemon, tmp_path)
    for name in "vw":
        daemon.ok("volume", "create", name, "--size", "1M")
    quiesce = f"echo quiesce >> {tmp_path}/notes; while ! [ -e {tmp_path}/go ]; do sleep 0.02; done"
    hooks = {"quiesce": quiesce, "thaw": f"echo thaw >> {tmp_path}/notes", "shell": True}
    found.api.patch("volumes", "v", body={"hooks": hooks})
    return found


def test_the_group_is_deleted(prepared: Prepared) -> None:
    api = prepared.api
    api.post("groups", body={"name": "g", "volumes": ["v", "w"]})
    take = lambda: api.post("groups", "g", "snapshots", body={"name": "s"})  # noqa: E731
    error = prepared.during(take, lambda: api.delete("groups", "g"))
    assert error is not None
    assert (error.code, prepared.cuts(), prepared.noted()) == ("unknown-group", 0, ["quiesce", "thaw"])


@pytest.mark.parametrize("again", [True, False])
def test_a_member_leaves_or_comes(prepared: Prepared, again: bool) -> None:
    api = prepared.api
    prepared.daemon.ok("volume", "create", "x", "--size", "1M")
    api.post("groups", body={"name": "g", "volumes": ["v", "w"]})

    def change() -> None:
        api.patch("groups", "g", body={"leave": ["w"]} if again else {"join": ["x"]})
        if again:
            api.delete("volumes", "w")
            api.post("volumes", body={"name": "w", "size": MIB})
            api.patch("groups", "g", body={"join": ["w"]})

    error = prepared.during(lambda: api.post("groups", "g", "snapshots", body={}), change)
    assert error is not None
    assert (error.code, prepared.cuts(), prepared.noted()) == ("group-changed", 0, ["quiesce", "thaw"])
    assert api.get("snapshots") == []


def test_a_volume_is_deleted_and_another_takes_its_name(prepared: Prepared) -> None:
    api = prepared.api
    take = lambda: api.post("snapshots", body={"volumes": ["v", "w"], "name": "s"})  # noqa: E731
    error = prepared.during(take, lambda: api.delete("volumes", "w"))
    assert error is not None
    assert error.code == "unknown-volume"
    api.post("volumes", body={"name": "w", "size": MIB})

    def replace() -> None:
        api.delete("volumes", "w")
        api.post("volumes", body={"name": "w", "size": MIB})

    error = prepared.during(take, replace)
    assert error is not None
    assert (error.code, prepared.cuts()) == ("volume-changed", 0)
    assert "another volume has taken its name" in str(error)
    assert prepared.noted() == ["quiesce", "thaw"] * 2


def test_it_is_rolled_back(prepared: Prepared) -> None:
    api = prepared.api
    api.post("snapshots", body={"volumes": ["w"], "name": "old"})
    take = lambda: api.post("snapshots", body={"volumes": ["v", "w"], "name": "s"})  # noqa: E731
    error = prepared.during(take, lambda: api.post("volumes", "w", "snapshots", "old", "rollback", body={}))
    assert error is not None
    assert error.code == "volume-changed"
    assert "it was rolled back or restored" in str(error)
    assert {each["name"] for each in api.get("snapshots")} == {"old", "before-old"}


def test_its_snapshot_s_name_is_taken(prepared: Prepared) -> None:
    api = prepared.api
    take = lambda: api.post("snapshots", body={"volumes": ["v", "w"], "name": "s"})  # noqa: E731
    error = prepared.during(take, lambda: api.post("snapshots", body={"volumes": ["w"], "name": "s"}))
    assert error is not None
    assert (error.code, prepared.cuts()) == ("name-in-use", 1)
    assert prepared.noted() == ["quiesce", "thaw"]


def test_it_grows_which_is_fine(prepared: Prepared) -> None:
    api = prepared.api
    take = lambda: api.post("snapshots", body={"volumes": ["v", "w"], "name": "s"})  # noqa: E731
    grow = lambda: api.post("volumes", "w", "growth", body={"size": 2 * MIB})  # noqa: E731
    assert prepared.during(take, grow) is None
    assert {each["volume"]: each["size"] for each in api.get("snapshots")} == {"v": MIB, "w": 2 * MIB}


def test_all_of_it_is_renamed_and_others_take_the_names(prepared: Prepared) -> None:
    api = prepared.api
    api.post("groups", body={"name": "g", "volumes": ["v", "w"]})
    api.post("schedules", body={"target": "@g", "every_s": 86_400, "keep": {"last": 1}, "name": "daily"})
    schedule = prepared.context.catalog.schedules.find("daily")
    assert schedule is not None

    def rename() -> None:
        for noun, name in (("volumes", "v"), ("groups", "g"), ("schedules", "daily")):
            api.post(noun, name, "rename", body={"name": f"{name}2"})
        api.post("volumes", body={"name": "v", "size": MIB})
        api.post("groups", body={"name": "g", "volumes": ["v"]})
        api.post("schedules", body={"target": "v", "every_s": 86_400, "keep": {"last": 1}, "name": "daily"})

    taker = prepared.daemon.service._taker
    assert prepared.during(lambda: taker.take_of_schedule(schedule), rename) is None
    found = {each["volume"]: (each["schedule"], each["whole"][:4]) for each in api.get("snapshots")}
    assert found == {"v2": ("daily2", "@g2@"), "w": ("daily2", "@g2@")}
    assert (api.get("schedules", "daily2")["count"], api.get("schedules", "daily")["count"]) == (1, 0)
    answers: list[Any] = []
    take = lambda: answers.append(api.post("groups", "g2", "snapshots", body={"name": "s"}))  # noqa: E731
    again = lambda: api.post("groups", "g2", "rename", body={"name": "g3"})  # noqa: E731
    assert prepared.during(take, again) is None
    assert answers[0]["export"] == "@g3@s"


def test_the_schedule_is_removed(prepared: Prepared) -> None:
    api = prepared.api
    body = {"target": "v", "every_s": 1, "keep": {"last": 1}, "name": "often"}
    api.post("schedules", body=body)
    wait_until(lambda: prepared.noted() == ["quiesce"], "the quiesce command", 10)
    api.delete("schedules", "often")
    (prepared.directory / "go").touch()
    prepared.daemon.service.schedules.wait()
    assert (prepared.cuts(), prepared.noted()) == (0, ["quiesce", "thaw"])
    assert [each for each in api.get("status")["events"] if each["level"] == "warning"] == []


def test_what_is_named_twice_is_refused_at_once(prepared: Prepared) -> None:
    api = prepared.api
    many = ["v"] * 1000
    requests: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("snapshots",), {"volumes": ["v", "v"]}),
        (("snapshots",), {"volumes": ["w", *many]}),
        (("groups",), {"name": "h", "volumes": ["v", "w", "v"]}),
        (("volumes", "v", "deletions"), {"names": ["*", "*"]}),
        (("volumes", "v", "logs"), {"devices": ["v.log", "v.log"]}),
        (("volumes",), {"name": "n", "size": MIB, "devices": ["v.data", "v.data"]}),
        (("volumes",), {"name": "n", "size": MIB, "log_devices": ["v.log", "v.log"]}),
    ]
    for path, body in requests:
        with pytest.raises(ApiError) as refused:
            api.post(*path, body=body)
        assert refused.value.code == "named-twice", path
    api.post("groups", body={"name": "g", "volumes": ["v"]})
    for change in ({"join": ["w", "w"]}, {"leave": ["v", "v"]}, {"join": ["w"], "leave": ["w"]}):
        with pytest.raises(ApiError) as refused:
            api.patch("groups", "g", body=change)
        assert refused.value.code == "named-twice"
    began = time.monotonic()
    with pytest.raises(ApiError) as refused:
        api.post("snapshots", body={"volumes": ["v"] * 90_000})
    assert refused.value.code == "bad-request"
    for names in (["v@a", "v@a"], ["w@b", "v@a", "v@a"], ["@g@s", "@g@s"]):
        assert "is named twice" in prepared.daemon.refused("snapshot", "delete", *names)
    assert time.monotonic() - began < 5
    assert prepared.noted() == []


def test_what_can_be_refused_is_refused_before_the_hooks(prepared: Prepared) -> None:
    prepared.daemon.ok("snapshot", "create", "w", "--name", "s")
    for more in (["--name", "s"], ["--name", "/"], ["--prefix", "-"], ["--log-device", "nix"]):
        prepared.daemon.refused("snapshot", "create", "w", "v", *more)
    assert prepared.noted() == []


def test_a_group_s_snapshots_have_different_names_whoever_was_in_it(prepared: Prepared) -> None:
    daemon = prepared.daemon
    daemon.ok("group", "create", "g", "w")
    daemon.ok("snapshot", "create", "@g", "--name", "s")
    daemon.ok("volume", "create", "x", "--size", "1M")
    daemon.ok("group", "join", "g", "x")
    daemon.ok("group", "leave", "g", "w")
    assert "snapshot @g@s exists already" in daemon.refused("snapshot", "create", "@g", "--name", "s")
    daemon.ok("snapshot", "create", "@g", "--name", "t")
    refused = daemon.refused("snapshot", "rollback", "@g@t", "--safety-name", "s")
    assert "exists already" in refused
    told = json.loads(daemon.ok("snapshot", "rollback", "@g@t", "--json"))
    assert told["safety"] == "before-t"


def test_a_stop_does_not_wait_for_those_who_wait_for_hooks(prepared: Prepared) -> None:
    api = prepared.api
    refused: dict[str, str] = {}

    def take(name: str) -> None:
        try:
            api.post("snapshots", body={"volumes": ["v"], "name": name})
        except ApiError as error:
            refused[name] = error.code

    takers = [threading.Thread(target=take, args=(name,), daemon=True) for name in "abc"]
    for taker in takers:
        taker.start()
    hooks = prepared.daemon.service._hooks
    wait_until(lambda: len(prepared.noted()) == 1, "the first quiesce command", 10)
    wait_until(lambda: hooks._asked._value == 1, "the others to wait", 10)
    began = time.monotonic()
    prepared.daemon.service.stop()
    assert time.monotonic() - began < 20
    assert prepared.noted() == ["quiesce", "thaw"]
    for taker in takers:
        taker.join(10)
    prepared.daemon.start()
    shown = {each["name"]: each["hook_trouble"] for each in api.get("snapshots")}
    assert set(shown) | set(refused) == {"a", "b", "c"}
    assert shown
    assert set(refused.values()) <= {"volume-busy"}
    assert all(shown.values())
