"""Partitions, partition snapshots, change logs and places, as the API and the command line show them; the sim
engine says what they are."""

import json
from dataclasses import replace
from typing import Any

import pytest

from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.context import Context
from polyvol.daemon.devices.health import device_troubles
from polyvol.daemon.partitions import logs as partition_logs, verbs
from polyvol.daemon.partitions.naming import Naming, read_names
from tests.support.sim_partitions import Counts
from tests.unit.conftest import Daemon

MIB = 1 << 20
BLOCK = 4096


@pytest.fixture
def written(daemon: Daemon) -> Daemon:
    """A volume `v` of four partitions with snapshots `a` and `b`. Partition 0 was written before `a` and
    after `b`, partition 1 between them, partition 2 before `a`, partition 3 never."""
    daemon.ok("volume", "create", "v", "--size", "4M", "--partition-size", "1M")
    handle = daemon.service.engine.open("v")
    handle.pwrite(b"0" * 2 * BLOCK, 0)
    handle.pwrite(b"0" * BLOCK, 2 * MIB)
    daemon.ok("snapshot", "create", "v", "--name", "a")
    handle.pwrite(b"1" * 3 * BLOCK, MIB)
    daemon.ok("snapshot", "create", "v", "--name", "b")
    handle.pwrite(b"2" * BLOCK, BLOCK)
    handle.zero(BLOCK, 4 * BLOCK)
    handle.close()
    return daemon


def said(daemon: Daemon, *arguments: str) -> Any:
    return json.loads(daemon.ok(*arguments, "--json"))


def fact(text: str, name: str) -> str:
    """A fact of those that a command has printed; several of one name with '; ' between them."""
    lines = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
    return "; ".join(value.strip() for key, _, value in lines if key == name)


def rows(text: str) -> list[list[str]]:
    """The cells of a table without its header; two blanks are between cells."""
    lines = text.splitlines()[1:]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def test_a_snapshot_has_each_partition_as_it_was(written: Daemon) -> None:
    parts = said(written, "snapshot", "show", "v@a", "--partitions")["partitions"]
    assert [part["id"] for part in parts] == [f"v@a#{number}" for number in range(4)]
    assert [part["frozen"] for part in parts] == [True, True, False, False]
    assert [part["log"] for part in parts] == [
        None,
        {"id": "v@a#1", "blocks": 3, "zeroes": 0, "bases": 0},
        None,
        None,
    ]
    assert [part["total"]["writes"] for part in parts] == [2, 0, 1, 0]
    parts = said(written, "snapshot", "show", "v@b", "--partitions")["partitions"]
    assert [part["log"] and (part["log"]["blocks"], part["log"]["zeroes"]) for part in parts] == [
        (1, 1),
        None,
        None,
        None,
    ]
    assert [part["since"]["writes"] for part in parts] == [0, 3, 0, 0]
    assert [(part["slots"], part["bases"]) for part in parts] == [(0, 256), (3, 253), (0, 256), (0, 256)]


def test_tables_say_what_was_not_written_since(written: Daemon) -> None:
    table = rows(written.ok("snapshot", "show", "v@b", "--partitions").partition("\n\n")[2])
    assert [row[-2:] for row in table] == [
        ["its own", "v@b#0: 1 block, 1 zero"],
        ["as the live one: not written since", "none: not written since"],
        ["as the live one: not written since", "none: not written since"],
        ["as the live one: not written since", "none: not written since"],
    ]


def test_what_is_unknown_is_not_shown_as_zero(written: Daemon) -> None:
    maps = written.service.engine.volumes[1].stored  # type: ignore[attr-defined]
    maps.counted = {
        epoch: {number: replace(Counts(), known=False) for number in range(4)} for epoch in maps.counted
    }
    maps.counts[3] = Counts(known=False)
    table = rows(written.ok("snapshot", "show", "v@a", "--partitions").partition("\n\n")[2])
    assert [row[4:8] for row in table] == [["unknown"] * 4] * 4
    assert [row[8] for row in rows(written.ok("partition", "list", "v"))[:1]] != ["unknown"]
    for part in said(written, "snapshot", "show", "v@a", "--partitions")["partitions"]:
        assert (part["total"], part["since"], part["last_write"]) == (None, None, None)
        assert not part["last_write_known"]
    assert rows(written.ok("partition", "list", "v"))[3][8] == "unknown"
    shown = written.ok("partition", "show", "v", "3")
    assert (fact(shown, "written"), fact(shown, "last write")) == ("0 writes", "unknown")
    assert fact(written.ok("log", "show", "v@a#1"), "written") == "unknown"


def test_the_snapshots_of_a_volume_are_counted(written: Daemon) -> None:
    listed = said(written, "snapshot", "list", "v", "--partitions")
    assert [(each["parts"]["partitions"], each["parts"]["written"]) for each in listed] == [(4, 1), (4, 1)]
    assert rows(written.ok("snapshot", "list", "v", "--partitions")) == [
        ["v@a", "1", "4", "1", "0 (2 partitions), 1 (2 partitions)"],
        ["v@b", "2", "4", "1", "0 (2 partitions), 1 (2 partitions)"],
    ]
    catalog = written.service._context.catalog
    with catalog._database.transaction() as connection:  # as a version that did not record it
        connection.execute("DELETE FROM snapshot_processor")
    assert rows(written.ok("snapshot", "list", "v", "--partitions"))[0][4] == "unknown"
    assert said(written, "snapshot", "list", "v")[0]["parts"] is None
    assert "for the snapshots of volumes" in written.run("snapshot", "list", "@g", "--partitions").stderr


def test_a_group_snapshot_shows_the_parts_of_its_members(grouped: Daemon) -> None:
    shown = said(grouped, "snapshot", "show", "@g@s", "--partitions")
    assert [part["id"] for member in shown["members"] for part in member["partitions"]] == ["a@s#0", "b@s#0"]
    table = grouped.ok("snapshot", "show", "@g@s", "--partitions")
    assert "\npartition snapshots of a@s:\nPARTITION" in table
    assert "\npartition snapshots of b@s:\nPARTITION" in table


def test_partitions_are_listed_and_shown(written: Daemon) -> None:
    parts = said(written, "partition", "list", "v")
    assert [(part["number"], part["processor"], part["size"]) for part in parts] == [
        (0, 0, MIB),
        (1, 1, MIB),
        (2, 0, MIB),
        (3, 1, MIB),
    ]
    assert [part["newest_snapshot"] for part in parts] == ["b"] * 4
    shown = said(written, "partition", "show", "v", "1")
    assert {key: shown[key] for key in parts[1]} == parts[1]
    assert (shown["offset"], shown["snapshots"]) == (MIB, 2)
    assert sum(extent["length"] for extent in shown["extents"]) == MIB
    assert [log["id"] for log in shown["logs"]] == ["v@a#1"]
    assert [part["id"] for part in shown["partition_snapshots"]] == ["v@a#1", "v@b#1"]
    text = written.ok("partition", "show", "v", "1")
    assert fact(text, "block map") == "3 blocks in slots, 0 zero, 253 at their base place"
    assert "v@a#1: 3 blocks" in text


def test_change_logs_are_listed_and_shown(written: Daemon) -> None:
    logs = said(written, "log", "list", "v")
    assert [log["id"] for log in logs] == ["v@b#0", "v@a#1"]
    assert [log["ended"] for log in logs] == [None, "b"]
    assert (logs[1]["blocks"], logs[1]["size"], logs[1]["runs"]) == (3, 3 * BLOCK, 1)
    assert said(written, "log", "list", "v", "--snapshot", "a") == logs[1:]
    assert said(written, "log", "list", "v", "--snapshot", "v@b") == logs[:1]
    assert said(written, "log", "list", "v", "--partition", "1") == logs[1:]
    assert said(written, "log", "list", "v", "--partition", "3") == []
    shown = said(written, "log", "show", "v@a#1")
    assert shown["log"] == logs[1]
    assert [(run["block"], run["blocks"]) for run in shown["runs"]] == [(0, 3)]
    assert shown["runs"][0]["device"] in logs[1]["placed"][0]["devices"]
    assert fact(written.ok("log", "show", "v@a#1"), "begins with") == "snapshot v@a"


def test_the_log_of_a_deleted_snapshot_joins_the_one_before(written: Daemon) -> None:
    written.ok("snapshot", "delete", "v@b")
    assert [log["id"] for log in said(written, "log", "list", "v")] == ["v@a#0", "v@a#1"]
    written.ok("snapshot", "delete", "v@a")
    assert [log["id"] for log in said(written, "log", "list", "v")] == ["v#0", "v#1"]
    assert said(written, "log", "show", "v#1")["log"]["begin"] is None
    assert fact(written.ok("log", "show", "v#1"), "begins with") == "volume v"


def test_a_log_of_a_snapshot_that_is_kept_for_a_clone_has_its_epoch(written: Daemon) -> None:
    written.ok("volume", "clone", "v@b", "c")
    written.ok("snapshot", "delete", "v@b")
    assert [log["id"] for log in said(written, "log", "list", "v")] == ["v@epoch:2#0", "v@a#1"]
    shown = said(written, "log", "show", "v@epoch:2#0")["log"]
    assert (shown["begin"], shown["epoch"]) == ("epoch:2", 2)


def test_places_are_found(written: Daemon) -> None:
    def found(*arguments: str) -> tuple[Any, ...]:
        place = said(written, "volume", "locate", "v", *arguments)
        return place["partition"], place["block"], place["kind"], place["log"]

    assert found("0") == (0, 0, "base", None)
    assert found("4K") == (0, 1, "log", "v@b#0")
    assert found("16K") == (0, 4, "zero", None)
    assert found("16K", "--snapshot", "b") == (0, 4, "base", None)
    assert found("1M", "--snapshot", "b") == (1, 0, "log", "v@a#1")
    assert found("1M", "--snapshot", "a") == (1, 0, "base", None)
    assert found(str(MIB + 2 * BLOCK)) == (1, 2, "log", "v@a#1")
    run = said(written, "log", "show", "v@a#1")["runs"][0]
    place = said(written, "volume", "locate", "v", str(MIB + 2 * BLOCK + 5))
    assert (place["device"], place["device_offset"]) == (run["device"], run["offset"] + 2 * BLOCK + 5)
    assert fact(written.ok("volume", "locate", "v", "16K"), "place") == "none: the block is zero"


def test_what_a_clone_has_of_its_source_is_found_there(written: Daemon) -> None:
    written.ok("volume", "clone", "v@b", "c")
    written.ok("snapshot", "create", "c", "--name", "x")
    written.ok("volume", "clone", "c@x", "d")
    written.ok("volume", "delete", "c", "--yes")
    place = said(written, "volume", "locate", "d", "1M")
    assert (place["kind"], place["source"]["volume"], place["source"]["snapshot"]) == ("source", "c", "x")
    last = place["source"]["source"]
    assert (last["volume"], last["snapshot"], last["kind"], last["log"]) == ("v", "b", "log", "v@a#1")
    text = written.ok("volume", "locate", "d", "1M")
    assert [each.partition(",")[0] for each in fact(text, "source").split("; ")] == [
        "snapshot c@x",
        "snapshot v@b",
    ]
    assert fact(text, "place") == "change log v@a#1, in log area 1"


def test_a_clone_that_has_grown_is_zero_behind_the_end_of_its_source(written: Daemon) -> None:
    written.ok("volume", "clone", "v@b", "c")
    written.ok("volume", "grow", "c", "--size", "5M")
    written.ok("snapshot", "create", "c", "--name", "x")
    assert fact(written.ok("volume", "locate", "c", "4M"), "place") == "none: the block is zero"
    written.ok("volume", "clone", "c@x", "d")
    place = said(written, "volume", "locate", "d", "4M")["source"]
    assert (place["volume"], place["kind"], place["source"]) == ("c", "zero", None)


def test_processors_are_listed_and_shown(written: Daemon) -> None:
    processors = said(written, "processor", "list")
    assert [(each["processor"], each["partitions"]) for each in processors] == [(0, 2), (1, 2)]
    shown = said(written, "processor", "show", "1", "--partitions")
    assert shown["volumes"] == [
        {"volume": "v", "partitions": 2, "first": 1, "last": 3, "logs": 1, "runs": [[1, 1], [3, 3]]}
    ]
    assert (shown["own_parts"], shown["reader_parts"]) == (6, 4)
    assert fact(written.ok("processor", "show", "1"), "CPU of its thread") == "5.0 ms"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("partition list w", "there is no volume 'w'; `polyvol volume list` shows those that exist"),
        (
            "partition show v 4",
            "volume v has no partition 4: they are numbered from 0 to 3;"
            " `polyvol partition list v` shows those that exist",
        ),
        (
            "log list v --partition 9",
            "volume v has no partition 9: they are numbered from 0 to 3;"
            " `polyvol partition list v` shows those that exist",
        ),
        (
            "log list v --snapshot z",
            "there is no snapshot 'z' of volume v; `polyvol snapshot list v` shows those that exist",
        ),
        (
            "log list v --snapshot epoch:9",
            "there is no snapshot 'epoch:9' of volume v; `polyvol snapshot list v` shows those that exist",
        ),
        (
            "log show v@epoch:0#1",
            "there is no snapshot 'epoch:0' of volume v; `polyvol snapshot list v` shows those that exist",
        ),
        (
            "log show v@a#3",
            "there is no change log v@a#3: partition 3 was not written from this snapshot until the next one;"
            " `polyvol log list v` shows those that exist",
        ),
        (
            "log show v#0",
            "there is no change log v#0: what was written to partition 0 before its first snapshot is at its"
            " base places; `polyvol log list v` shows those that exist",
        ),
        (
            "log show v@a",
            "'v@a' does not name a change log;"
            " give VOLUME@SNAPSHOT#PARTITION, such as db@monday#7, or VOLUME#PARTITION",
        ),
        (
            "volume locate v 4M",
            "offset 4194304 is behind the end of v, which has 4 MiB; give an offset from 0 to 4194303",
        ),
        (
            "processor show 2",
            "there is no processor 2; `polyvol processor list` shows those that exist",
        ),
    ],
)
def test_a_refusal_is_one_sentence(written: Daemon, command: str, sentence: str) -> None:
    assert written.refused(*command.split()) == sentence


def test_a_snapshot_has_the_partitions_of_its_size_alone(written: Daemon) -> None:
    written.ok("volume", "grow", "v", "--size", "6M")
    assert len(said(written, "snapshot", "show", "v@a", "--partitions")["partitions"]) == 4
    assert said(written, "partition", "show", "v", "5")["snapshots"] == 0
    assert [each["id"] for each in said(written, "partition", "show", "v", "3")["partition_snapshots"]] == [
        "v@a#3",
        "v@b#3",
    ]
    assert "behind the end of v@a" in written.refused("volume", "locate", "v", "4M", "--snapshot", "a")
    assert "snapshot v@a has no partition 5" in written.refused("log", "show", "v@a#5")


def test_partitions_have_their_sizes_while_the_volume_grows(
    written: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:

    def grown(context: Context, naming: Naming) -> Naming:
        """Before the engine is asked."""
        monkeypatch.setattr(verbs, "read_names", read_names)
        written.ok("volume", "grow", "v", "--size", "6M")
        return read_names(context, naming)

    monkeypatch.setattr(verbs, "read_names", grown)
    page = Client(written.state_dir).get("volumes", "v", "partitions")
    assert {part["size"] for part in page["partitions"]} == {MIB}


def test_a_volume_that_is_deleted_while_its_partition_is_shown_is_unknown(
    written: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:

    def deleted(context: Context) -> Any:
        """After the engine was asked, and before the last look into the catalog."""
        monkeypatch.setattr(verbs, "device_troubles", device_troubles)
        written.ok("volume", "delete", "v", "--yes")
        return device_troubles(context)

    monkeypatch.setattr(verbs, "device_troubles", deleted)
    assert written.refused("partition", "show", "v", "0").startswith("there is no volume 'v'")


def test_a_volume_that_is_not_served_is_refused(written: Daemon) -> None:
    written.world.fail["add_volume"] = 0
    written.restart()
    for command in ("partition list v", "partition show v 0", "log list v", "volume locate v 0"):
        assert written.refused(*command.split()).startswith("volume v is not served")
    assert said(written, "snapshot", "list", "v", "--partitions")[0]["parts"]["written"] is None
    assert said(written, "processor", "show", "0")["volumes"][0]["logs"] is None


def test_pages_join(written: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(written.state_dir)
    for path, key in (
        (("volumes", "v", "partitions"), "partitions"),
        (("volumes", "v", "snapshots", "b", "partitions"), "partition_snapshots"),
        (("volumes", "v", "partitions", "1", "snapshots"), "partition_snapshots"),
        (("volumes", "v", "change-logs"), "logs"),
        (("change-logs", "v@a#1"), "runs"),
    ):
        whole = client.get(*path)
        assert whole["next"] is None
        some: list[Any] = []
        following: int | None = 0
        while following is not None:
            page = client.get(*path, first=str(following), count="1")
            assert len(page[key]) <= 1
            some += page[key]
            following = page["next"]
        assert some == whole[key] != []
    for query in ({"count": "0"}, {"count": "10001"}, {"first": "-1"}, {"count": "x"}):
        with pytest.raises(ApiError) as refused:
            client.get("volumes", "v", "partitions", **query)
        assert refused.value.code == "bad-request"
    for first in ("4", str(1 << 32), str((1 << 63) - 1)):
        for path, key in (
            (("volumes", "v", "partitions"), "partitions"),
            (("volumes", "v", "snapshots", "b", "partitions"), "partition_snapshots"),
            (("volumes", "v", "change-logs"), "logs"),
        ):
            page = client.get(*path, first=first)
            assert (page[key], page["next"]) == ([], None)
    monkeypatch.setattr(partition_logs, "LOGS_MAX", 1)
    monkeypatch.setattr(partition_logs, "_STEP_MIN", 1)
    page = client.get("volumes", "v", "change-logs")
    assert ([log["id"] for log in page["logs"]], page["next"]) == (["v@b#0"], 1)


@pytest.mark.slow
def test_a_page_asks_for_its_own_partitions_alone(written: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """So its cost does not follow the size of the volume."""
    client = Client(written.state_dir)
    catalog = written.service._context.catalog.volumes
    asked: list[tuple[int, ...]] = []
    real = catalog.partitions

    def noted(*of: Any) -> Any:
        asked.append(of)
        return real(*of)

    monkeypatch.setattr(catalog, "partitions", noted)
    written.world.calls.clear()
    client.get("volumes", "v", "partitions", first="1", count="2")
    client.get("volumes", "v", "snapshots", "a", "partitions", first="1", count="2")
    assert asked == [(1, 1, 2)]
    assert ("partitions", 1, 1, 2) in written.world.calls
    assert ("partition_snapshots", 1, 1, 1, 2) in written.world.calls


def test_a_volume_that_is_replaced_between_two_pages_is_noticed(
    written: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyvol.daemon.client.cli.pages._COUNT", "1")
    seen = []
    real = Client.get

    def get(self: Client, *parts: str, **query: Any) -> Any:
        page = real(self, *parts, **query)
        seen.append(parts)
        return page | {"uuid": str(len(seen))} if "next" in page else page

    monkeypatch.setattr(Client, "get", get)
    assert written.refused("partition", "list", "v") == (
        "volume v was deleted in the meantime, and another one has its name;"
        " repeat the command if the new one is meant"
    )
    assert written.refused("snapshot", "show", "v@a", "--partitions").startswith("snapshot v@a was deleted")
