"""What changed, as the API and the command line tell it; the sim engine says what it is."""

import json

import pytest

from polyvol.daemon.client.cli.client import ApiError, Client
from tests.unit.conftest import Daemon

MIB = 1 << 20


@pytest.fixture
def compared(daemon: Daemon) -> Daemon:
    """A volume `v` with snapshots `a` and `b`, written to before, between and after them."""
    daemon.ok("volume", "create", "v", "--size", "100M")
    handle = daemon.service.engine.open("v")
    handle.pwrite(b"0" * 8192, 0)
    daemon.ok("snapshot", "create", "v", "--name", "a")
    handle.pwrite(b"1" * 8192, MIB)
    handle.pwrite(b"1" * 4096, 64 * MIB)
    daemon.ok("snapshot", "create", "v", "--name", "b")
    handle.pwrite(b"2" * 4096, 0)
    handle.close()
    return daemon


def test_extents_are_told_one_to_a_line(compared: Daemon) -> None:
    assert compared.ok("snapshot", "diff", "v@a", "v@b") == f"{MIB} 8192\n{64 * MIB} 4096\n"
    now = f"0 4096\n{MIB} 8192\n{64 * MIB} 4096\n"
    assert compared.ok("snapshot", "diff", "v@a") == now
    assert compared.ok("snapshot", "diff", "v@a", "v") == now
    assert compared.ok("snapshot", "diff", "v@b", "v@b") == ""


def test_a_summary_says_how_much_it_is(compared: Daemon) -> None:
    assert compared.ok("snapshot", "diff", "v@a", "v@b", "--summary") == "2 extents, 12 KiB of 100 MiB\n"
    total = json.loads(compared.ok("snapshot", "diff", "v@a", "--summary", "--json"))
    assert (total["extents"], total["bytes"], total["until"]) == (3, 16384, None)


def test_json_has_all_pages(compared: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(compared.state_dir)
    where = ("volumes", "v", "snapshots", "a", "changes")
    page = client.get(*where, limit="2")
    assert [extent["offset"] for extent in page["extents"]] == [0, MIB]
    assert page["next"] == 64 * MIB
    page = client.get(*where, limit="2", start=str(page["next"]))
    assert (page["extents"], page["next"]) == ([{"offset": 64 * MIB, "length": 4096}], None)
    shown = json.loads(compared.ok("snapshot", "diff", "v@a", "--json"))
    assert (shown["since"], shown["until"], len(shown["extents"])) == ("a", None, 3)


def test_what_cannot_be_compared_is_refused(compared: Daemon) -> None:
    compared.ok("volume", "create", "w", "--size", "100M")
    compared.ok("snapshot", "create", "w", "--name", "a")
    assert "no snapshot 'x'" in compared.refused("snapshot", "diff", "v@x")
    assert "no snapshot 'x'" in compared.refused("snapshot", "diff", "v@a", "v@x", "--summary")
    assert "no volume 'u'" in compared.refused("snapshot", "diff", "u@a")
    assert "another volume" in compared.refused("snapshot", "diff", "v@a", "w@a")
    assert "VOLUME@SNAPSHOT" in compared.refused("snapshot", "diff", "v@a", "w")
    client = Client(compared.state_dir)
    for query in ({"start": "-1"}, {"limit": "0"}, {"limit": "99999999"}, {"start": "1e3"}, {"start": "²"}):
        with pytest.raises(ApiError, match="request is not valid"):
            client.get("volumes", "v", "snapshots", "a", "changes", **query)
