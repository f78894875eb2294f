"""What the command line prints: escapes, tables on any terminal, times, and JSON of every verb."""

import json
import os
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from polyvol.daemon.client.cli import output
from polyvol.daemon.client.cli.output import print_facts, print_table, say, visible
from polyvol.daemon.client.cli.times import local_option, moment, moments, zoned
from tests.unit.conftest import Daemon

HEADER = ("NAME", "STATE", "PATH", "REASON")
ROWS = [("a-volume-with-a-long-name", "ok", "/a/path with spaces/x", None), ("b", "", "/p", "-")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 字", "plain é 字"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("a\u202eb", "a\\u202eb"),
        ("\x9b1m", "\\x9b1m"),
    ],
)
def test_what_cannot_be_printed_is_shown_as_its_escape(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visible(text) == shown
    say(text)
    print_facts([("name", text)])
    print_table(("NAME",), [(text,)])
    assert capsys.readouterr().out.splitlines() == [shown, f"name: {shown}", "NAME", shown]


def test_a_table_has_a_line_for_each_row_and_no_empty_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADER, ROWS)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == list(HEADER)
    assert len(rows) == len(ROWS)
    assert rows[0].endswith("/a/path with spaces/x  -")
    assert rows[1].split() == ["b", "-", "/p", "-"]


@pytest.mark.parametrize("columns", [1, 20, 40, 60])
def test_a_narrow_terminal_breaks_rows_between_cells_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(HEADER, ROWS)
    lines = capsys.readouterr().out.splitlines()
    longest = max(len(str(cell)) for row in ROWS for cell in row) + len(output._INDENT)
    assert max(map(len, lines)) <= max(columns, longest)
    for cell in (cell for row in ROWS for cell in row if cell):
        assert any(cell in line for line in lines)


def test_times_are_short_and_have_seconds_where_minutes_are_not_enough() -> None:
    early, late = "2026-11-30T06:24:11.123456Z", "2026-11-30T06:25:59.000001Z"
    assert moment(early) == "2026-11-30 06:24:11 UTC"
    assert moment(None) is None
    assert moments([early, None, late, early]) == [
        "2026-11-30 06:24", "-", "2026-11-30 06:25", "2026-11-30 06:24"
    ]  # fmt: skip
    assert moments([early, "2026-11-30T06:24:12Z"]) == ["2026-11-30 06:24:11", "2026-11-30 06:24:12"]
    assert moments([early], [True]) == ["2026-11-30 06:24 (in the future)"]
    assert moments(["rubbish", "9999-12-31T23:59:59Z"]) == ["rubbish", "9999-12-31 23:59"]


def test_local_shows_times_in_the_zone_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @local_option
    def show() -> None:
        say(f"{moment('2026-07-01T12:00:00Z')} {zoned('CREATED')} {moments(['2026-12-01T12:00:00Z'])}")

    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    import time

    time.tzset()
    try:
        local = CliRunner().invoke(show, ["--local"]).stdout
        utc = CliRunner().invoke(show, []).stdout
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert local == "2026-07-01 14:00:00 CEST CREATED (local) ['2026-12-01 13:00']\n"
    assert utc == "2026-07-01 12:00:00 UTC CREATED (UTC) ['2026-12-01 12:00']\n"


def test_every_verb_answers_in_json(daemon: Daemon, tmp_path: Path) -> None:
    path = str(tmp_path / "d")
    for command in (
        ["device", "add", path, "--size", "1G", "--name", "d"],
        ["volume", "create", "v", "--size", "1M"],
        ["volume", "set", "v", "--when-full", "keep-snapshots"],
        ["volume", "add-log", "v", "--device", "d"],
        ["volume", "grow", "v", "--size", "2M"],
        ["snapshot", "create", "v", "--name", "s"],
        ["snapshot", "hold", "v@s", "--tag", "t"],
        ["snapshot", "release", "v@s", "--tag", "t"],
        ["snapshot", "rollback", "v@s", "--safety-name", "safe"],
        ["volume", "clone", "v@s", "c"],
        ["volume", "delete", "c", "--yes"],
        ["snapshot", "delete", "v@safe"],
        ["snapshot", "delete", "v@s*"],
        ["group", "create", "g", "v"],
        ["group", "leave", "g", "v"],
        ["group", "join", "g", "v"],
        ["snapshot", "create", "@g", "--name", "s"],
        ["snapshot", "delete", "@g@s"],
        ["schedule", "add", "v", "--every", "1h", "--keep", "last=1", "--name", "n"],
        ["schedule", "add", "v", "--every", "1h", "--keep", "last=1", "--dry-run"],
        ["schedule", "pause", "n"],
        ["schedule", "resume", "n"],
        ["schedule", "remove", "n"],
        ["group", "delete", "g"],
        ["scrub", "v"],
        ["scrub", "--weekly", "on"],
        ["volume", "delete", "v", "--yes"],
        ["device", "retry", "d"],
        ["device", "remove", "d"],
        ["status"],
        *([noun, "list"] for noun in ("device", "volume", "snapshot", "group", "schedule")),
    ):
        answer = json.loads(daemon.ok(*command, "--json"))
        assert isinstance(answer, dict | list), command


def test_refusals_are_json_on_stderr_and_stdout_is_empty(daemon: Daemon) -> None:
    for command, code, status in (
        (["volume", "show", "nix"], "unknown-volume", 1),
        (["snapshot", "show", "v"], "bad-snapshot-name", 1),
        (["volume", "delete", "v"], "not-confirmed", 1),
        (["volume", "create"], "usage", 2),
        (["volume", "create", "v", "--size", "x"], "usage", 2),
        (["status", "--nix"], "usage", 2),
        (["attach", "--list", "v"], "usage", 2),
        (["nix"], "usage", 2),
        (["volume", "show", ""], "bad-name", 1),
        (["snapshot", "delete", "v@x*", "w@y"], "unknown-volume", 1),
    ):
        result = daemon.run(*command, "--json")
        assert (result.exit_code, result.stdout) == (status, ""), command
        for line in result.stderr.splitlines():
            error = json.loads(line)["error"]
            assert error["code"] == code
            assert set(error) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v", "it names a volume alone; give VOLUME@SNAPSHOT or @GROUP@SNAPSHOT"),
        ("@g", "it names a group alone; give @GROUP@SNAPSHOT"),
        ("@g@", "nothing follows the @; give @GROUP@SNAPSHOT"),
        ("@", "the name of the group is missing"),
        ("v@a@b", "one @ too many"),
    ],
)
def test_a_wrong_name_of_a_snapshot_says_what_is_wrong_with_it(daemon: Daemon, name: str, words: str) -> None:
    assert words in daemon.refused("snapshot", "show", name)


def test_a_command_for_one_volume_says_so_to_who_names_a_group(daemon: Daemon) -> None:
    said = daemon.refused("volume", "clone", "@g@s", "n")
    assert said.endswith(
        "this is for the snapshot of one volume, and that is a group's; give VOLUME@SNAPSHOT"
    )


def test_a_pattern_that_matches_nothing_is_an_error_and_the_others_are_deleted(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("volume", "create", "w", "--size", "1M")
    daemon.ok("snapshot", "create", "v", "w", "--name", "s")
    assert daemon.refused("snapshot", "delete", "v@nope*").startswith("no snapshot matches 'v@nope*'; ")
    daemon.refused("snapshot", "delete", "v@s", "v@nope*")
    assert "v@s" in daemon.ok("snapshot", "list")
    result = daemon.run("snapshot", "delete", "v@nope*", "w@s*")
    assert (result.exit_code, result.stdout) == (1, "volume w: 1 snapshot deleted, 0 B given back\n")
    daemon.ok("group", "create", "g", "v")
    assert "no snapshot matches '@g@n*'" in daemon.refused("snapshot", "delete", "@g@n*")
