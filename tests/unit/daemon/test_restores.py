"""Restores in the daemon: who may write, what is refused, and what is left when a step fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.mapping.errors import PolyvolError
from tests.unit.conftest import Daemon

MIB = 1 << 20
BASE, NEXT, STREAM = (str(uuid4()) for _ in range(3))
FULL = {"volume": "w", "source": "/b/s0", "size": 8 * MIB, "snapshot": "s0", "snapshot_uuid": BASE}
INCREMENTAL = {
    **FULL,
    **{"source": "/b/s1", "snapshot": "s1", "snapshot_uuid": NEXT, "base": "s0", "base_uuid": BASE},
}
Json = Any


class Bench:
    """A daemon, its API, and both kinds of restores to its volume w."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.client = Client(daemon.state_dir)

    def begin(self, body: Json, **more: Json) -> Json:
        return self.client.post("restores", body={"stream": STREAM, **body, **more})

    def complete(self, begun: Json) -> Json:
        path = ("volumes", "w", "restore", "completion")
        return self.client.post(*path, body={"export": begun["export"]})

    def abandon(self) -> Json:
        return self.client.delete("volumes", "w", "restore")

    def write(self, export: str, data: bytes, offset: int = 0) -> None:
        handle = self.daemon.service.engine.open(export)
        handle.pwrite(data, offset)
        handle.close()

    def read(self, export: str) -> bytes:
        handle = self.daemon.service.engine.open(export)
        data = handle.pread(4, 0)
        handle.close()
        return data

    def exports(self) -> list[str]:
        return [export["name"] for export in self.daemon.service.exports()]

    def volume(self) -> Json:
        return self.client.get("volumes", "w")

    def lasting(self) -> Json:
        """The volume, but for what moves with the time and with what hosts write."""
        return {
            key: value for key, value in self.volume().items() if key not in ("space", "use", "relocation")
        }


@contextmanager
def refused(code: str) -> Iterator[pytest.ExceptionInfo[ApiError]]:
    with pytest.raises(ApiError) as caught:
        yield caught
    assert caught.value.code == code, caught.value


@pytest.fixture
def bench(daemon: Daemon) -> Bench:
    return Bench(daemon)


@pytest.fixture(params=["full", "incremental"])
def body(request: pytest.FixtureRequest, bench: Bench) -> Json:
    """A restore that can begin; for an incremental one its base is there."""
    if request.param == "full":
        return FULL
    restore_base(bench)
    return INCREMENTAL


def restore_base(bench: Bench) -> None:
    begun = bench.begin(FULL)
    bench.write(begun["export"], b"base")
    bench.complete(begun)


def test_a_volume_belongs_to_its_restore_until_that_is_complete(bench: Bench, body: Json) -> None:
    had = ["w@s0"] if body is INCREMENTAL else []
    begun = bench.begin(body)
    assert bench.exports() == had
    shown = bench.volume()
    assert (shown["state"], shown["restore"]["source"]) == ("restoring", body["source"])
    assert begun["export"] not in str(shown)
    bench.write(begun["export"], b"new ")
    snapshot = bench.complete(begun)
    assert (snapshot["name"], snapshot["copy_of"]) == (body["snapshot"], body["snapshot_uuid"])
    assert bench.exports() == ["w", *had, f"w@{body['snapshot']}"]
    assert bench.volume()["state"] == "serving"
    assert bench.volume()["restore"] is None
    assert bench.read(f"w@{body['snapshot']}") == b"new "
    with refused("no-restore"):
        bench.complete(begun)
    with refused("no-restore"):
        bench.abandon()


def test_other_verbs_are_refused_while_a_restore_is_incomplete(bench: Bench) -> None:
    restore_base(bench)
    client = bench.client
    client.post("groups", body={"name": "g", "volumes": ["w"]})
    bench.begin(INCREMENTAL)
    base = ("volumes", "w", "snapshots", "s0")
    verbs: list[Callable[[], object]] = [
        lambda: client.post("snapshots", body={"volumes": ["w"], "name": "x"}),
        lambda: client.post("groups", "g", "snapshots", body={"name": "x"}),
        lambda: client.post("volumes", "w", "growth", body={"size": 16 * MIB}),
        lambda: client.post(*base, "rollback", body={}),
        lambda: client.delete(*base),
        lambda: bench.begin(INCREMENTAL),
    ]
    for restart in (False, True):
        if restart:
            bench.daemon.restart()
        for verb in verbs:
            with refused("restoring") as caught:
                verb()
            assert "volume w is being restored from /b/s1" in str(caught.value)
            assert "`polyvol restore FILE w --resume`" in str(caught.value)
        for other in (INCREMENTAL, FULL):  # perhaps another file of the same name
            with refused("cannot-resume") as caught:
                bench.begin(other, resume=True, stream=str(uuid4()))
            assert "it is being restored from /b/s1, which was another backup then" in str(caught.value)
            assert "`polyvol volume abandon-restore w`" in str(caught.value)
        [kept] = client.post("volumes", "w", "deletions", body={"names": ["*"]})["kept"]
        assert kept["name"] == "s0"
        assert bench.exports() == ["w@s0"]
    said = bench.daemon.ok("volume", "list")
    assert "restoring" in said
    assert (
        "the restore of snapshot s1 from /b/s1 is incomplete, and not running: `polyvol restore FILE w"
        in said
    )
    # What does not touch it is not refused.
    client.post(*base, "clones", body={"name": "c"})
    assert client.get(*base)["name"] == "s0"


def test_space_is_not_made_of_what_a_restore_follows(bench: Bench) -> None:
    from polyvol.daemon.space.change_logs import SpaceMonitor

    bench.client.post("volumes", body={"name": "w", "size": 8 * MIB})
    body = {"volumes": ["w"], "scheduled": True}
    base, other = (bench.client.post("snapshots", body={**body, "name": name})[0] for name in ("s0", "later"))
    bench.begin(INCREMENTAL, base_uuid=base["uuid"])
    service = bench.daemon.service
    space = SpaceMonitor(service._context, service.snapshots)
    volume = service._context.find_volume("w")
    bench.daemon.world.starving.add(volume.id)
    space.make_room(volume.id)
    space.make_room(volume.id)
    assert [each["name"] for each in bench.client.get("snapshots", volume="w")] == ["s0"]
    assert other["name"] == "later"


def test_a_restore_that_is_interrupted_is_resumed_by_the_same_stream(bench: Bench, body: Json) -> None:
    first = bench.begin(body)
    bench.write(first["export"], b"half")
    bench.daemon.restart()
    with refused("restore-ended"):
        bench.complete(first)
    again = bench.begin(body, resume=True)
    assert again["resumed"]
    assert again["export"] != first["export"]
    bench.write(again["export"], b"new ")
    bench.complete(again)
    assert bench.read("w") == b"new "
    with refused("already-restored"):
        bench.begin(body, resume=True)


def test_two_clients_do_not_write_one_restore(bench: Bench, body: Json) -> None:
    first = bench.begin(body)
    handle = bench.daemon.service.engine.open(first["export"])
    for more in ({"resume": True}, {"resume": True, "dry_run": True}):
        with refused("restore-running"):
            bench.begin(body, **more)
    assert " is being restored to it from /b/s" in bench.daemon.ok("volume", "list")
    with refused("restore-running"):
        bench.abandon()
    with refused("volume-in-use"):
        bench.client.delete("volumes", "w")
    handle.close()
    second = bench.begin(body, resume=True)
    with refused("restore-ended"):
        bench.complete(first)
    with pytest.raises(bench.daemon.world.EngineError):
        bench.write(first["export"], b"late")
    bench.complete(second)


def test_a_restore_can_begin_by_any_clock(bench: Bench, body: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    for now_s in (-1, 1 << 40):
        monkeypatch.setattr("time.time_ns", lambda now_s=now_s: now_s * 1_000_000_000)
        bench.begin(body)
        assert bench.volume()["restore"]["begun"][:4] in ("1970", "2262")
        bench.daemon.ok("volume", "show", "w")
        bench.abandon()
    assert bench.daemon.service._context.catalog.restores.all() == []


def test_an_abandoned_restore_leaves_what_was_before(bench: Bench, body: Json) -> None:
    begun = bench.begin(body)
    bench.write(begun["export"], b"half")
    bench.daemon.restart()
    said = bench.daemon.ok("volume", "abandon-restore", "w")
    if body is FULL:
        assert "deleted" in said
        assert bench.client.get("volumes") == []
        bench.begin(body)
        return
    assert "what w@s0 shows" in said
    assert (bench.volume()["state"], bench.volume()["snapshots"]) == ("serving", ["s0"])
    assert bench.read("w") == b"base"
    bench.complete(bench.begin(body))


def test_a_volume_that_is_being_restored_can_be_deleted(bench: Bench, body: Json) -> None:
    bench.begin(body)
    bench.client.delete("volumes", "w")
    assert bench.client.get("volumes") == []
    assert bench.daemon.service.engine.exports() == []
    if body is INCREMENTAL:
        restore_base(bench)
        bench.client.post("volumes", "w", "snapshots", "s0", "clones", body={"name": "c"})
        bench.begin(body)
        bench.client.delete("volumes", "w")
        bench.daemon.restart()
        assert bench.read("c") == b"base"


@pytest.mark.parametrize("step", ["cut", "settle", "flush", "export"])
def test_a_completion_that_fails_leaves_the_restore_incomplete(bench: Bench, body: Json, step: str) -> None:
    begun = bench.begin(body)
    bench.write(begun["export"], b"new ")
    bench.daemon.world.fail[step] = 0
    with refused("cut-failed"):
        bench.complete(begun)
    del bench.daemon.world.fail[step]
    assert bench.volume()["state"] == "restoring"
    assert body["snapshot"] not in bench.volume()["snapshots"]
    bench.daemon.restart()
    assert "w" not in bench.exports()
    bench.complete(bench.begin(body, resume=True))
    assert bench.read("w") == b"new "


def test_a_restore_that_cannot_begin_changes_nothing(bench: Bench) -> None:
    restore_base(bench)
    before = (bench.lasting(), bench.client.get("status")["devices"])
    handle = bench.daemon.service.engine.open("w")
    with refused("volume-in-use"):
        bench.begin(INCREMENTAL)
    handle.close()
    wrong: list[tuple[str, Json]] = [
        ("target-size", {"size": 16 * MIB}),
        ("base-missing", {"base_uuid": str(uuid4())}),
        ("already-restored", {"snapshot_uuid": BASE}),
        ("name-in-use", {"snapshot": "s0"}),
        ("cannot-resume", {"resume": True}),
        ("bad-request", {"stream": "7"}),
        ("bad-name", {"snapshot": "a@b"}),
        ("base-missing", {"volume": "x"}),
    ]
    for code, more in wrong:
        for dry_run in (True, False):
            with refused(code):
                bench.begin(INCREMENTAL, dry_run=dry_run, **more)
    wrong = [
        ("not-a-new-volume", {"snapshot_uuid": NEXT}),
        ("cannot-resume", {"snapshot_uuid": NEXT, "resume": True}),
        ("already-restored", {"resume": True}),
        ("unaligned-size", {"volume": "x", "size": 5}),
    ]
    for code, more in wrong:
        for dry_run in (True, False):
            with refused(code):
                bench.begin(FULL, dry_run=dry_run, **more)
    bench.begin(INCREMENTAL, dry_run=True)
    bench.begin(FULL, volume="x", dry_run=True)
    bench.write("w", b"host", 4 * MIB)
    with refused("changed-since-base"):
        bench.begin(INCREMENTAL)
    assert bench.exports() == ["w", "w@s0"]
    assert bench.lasting() == before[0]
    assert bench.client.get("status")["devices"] == before[1]


@pytest.mark.parametrize("step", ["export_hidden", "add_volume"])
def test_a_restore_that_fails_to_begin_can_be_begun_again(bench: Bench, step: str) -> None:
    bench.daemon.world.fail[step] = 0
    with refused("engine-failed"):
        bench.begin(FULL)
    del bench.daemon.world.fail[step]
    assert bench.exports() == []
    bench.complete(bench.begin(FULL, resume=True))


def test_a_clean_up_never_loses_the_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails after the commit, the snapshot and the restore's record are never both gone."""
    begun = bench.begin(FULL)
    snapshots = bench.daemon.service._context.catalog.snapshots

    def broken(*_: object) -> None:
        raise PolyvolError

    monkeypatch.setattr(snapshots, "forget_cut", broken)
    bench.daemon.world.fail["export"] = 0
    with refused("cut-failed"):
        bench.complete(begun)
    del bench.daemon.world.fail["export"]
    bench.daemon.restart()
    assert (bench.volume()["state"], bench.volume()["snapshots"]) == ("serving", ["s0"])


@pytest.mark.parametrize("made", [False, True])
def test_an_abandonment_that_fails_leaves_the_restore_incomplete(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """Whether its transaction was made all the same, or not."""
    restore_base(bench)
    bench.write(bench.begin(INCREMENTAL)["export"], b"half")
    catalog = bench.daemon.service._context.catalog
    commit = catalog.snapshots.commit

    def failing(*arguments: Any) -> None:
        if made:
            commit(*arguments)
        raise OSError("disk")

    monkeypatch.setattr(catalog.snapshots, "commit", failing)
    with refused("cut-failed"):
        bench.abandon()
    monkeypatch.undo()
    for restart in (False, True):
        if restart:
            bench.daemon.restart()
        assert bench.volume()["state"] == "restoring"
        assert bench.exports() == ["w@s0"]
    bench.abandon()
    assert bench.read("w") == b"base"
