"""test_exporting: exports that end for a change, all or none, and are there again when it fails."""

import pytest

from tests.unit.conftest import Daemon


@pytest.fixture
def volume(daemon: Daemon) -> Daemon:
    """A volume v with snapshots s and t."""
    daemon.ok("volume", "create", "v", "--size", "1M")
    for name in ("s", "t"):
        daemon.ok("snapshot", "create", "v", "--name", name)
    return daemon


def exports(daemon: Daemon) -> list[str]:
    return sorted(each["name"] for each in daemon.service.exports())


@pytest.mark.parametrize(
    "verb",
    [
        ("snapshot", "delete", "v@s"),
        ("volume", "delete", "v", "--yes"),
        ("snapshot", "rollback", "v@s"),
        ("snapshot", "rename", "v@s", "u"),
        ("volume", "rename", "v", "w"),
    ],
)
def test_an_export_that_the_engine_cannot_end_is_not_said_to_have_a_client(
    volume: Daemon, verb: tuple[str, ...]
) -> None:
    volume.world.fail["unexport"] = 0
    refusal = volume.refused(*verb)
    assert "ending the export v" in refusal
    assert "client" not in refusal
    volume.world.fail.clear()
    assert exports(volume) == ["v", "v@s", "v@t"]


@pytest.mark.parametrize("fails_at", range(3))
def test_the_exports_that_have_ended_are_made_again_if_another_one_stays(
    volume: Daemon, fails_at: int
) -> None:
    volume.world.fail["unexport"] = fails_at
    volume.refused("volume", "delete", "v", "--yes")
    volume.world.fail.clear()
    assert exports(volume) == ["v", "v@s", "v@t"]


def test_the_exports_are_made_again_if_what_they_ended_for_fails(
    volume: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    snapshots, volumes = (getattr(volume.service._context.catalog, name) for name in ("snapshots", "volumes"))
    monkeypatch.setattr(snapshots, "forget", broken)
    monkeypatch.setattr(volumes, "set_state", broken)
    volume.refused("snapshot", "delete", "v@s")
    volume.refused("volume", "delete", "v", "--yes")
    monkeypatch.undo()
    assert exports(volume) == ["v", "v@s", "v@t"]
    volume.ok("volume", "delete", "v", "--yes")
    assert exports(volume) == []
