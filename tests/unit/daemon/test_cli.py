"""The command line against a service on the sim engine: what works, and what is refused."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from polyvol.daemon.client.cli.commands import cli
from tests.unit.conftest import Daemon

MIB = 1 << 20


def exports(daemon: Daemon) -> list[str]:
    return [each["name"] for each in daemon.service.exports()]


def test_a_volume_is_made_shown_and_deleted_with_its_files(daemon: Daemon) -> None:
    assert daemon.ok("volume", "create", "demo", "--size", "100M").startswith(
        "volume demo: 100 MiB, 2 partitions"
    )
    [listed] = json.loads(daemon.ok("volume", "list", "--json"))
    assert (listed["name"], listed["state"], listed["size"]) == ("demo", "serving", 100 * MIB)
    assert listed["processors"] == [0, 1]
    assert listed["devices"] == ["demo.data-0", "demo.data-1"]
    assert [log["devices"] for log in listed["logs"]] == [["demo.log-0"], ["demo.log-1"]]
    assert exports(daemon) == ["demo"]
    files = sorted(path.name for path in (daemon.state_dir / "devices").iterdir())
    assert files == ["demo.data-0", "demo.data-1", "demo.log-0", "demo.log-1"]
    shown = json.loads(daemon.ok("volume", "show", "demo", "--partitions", "--json"))
    assert [part["extents"][0]["length"] for part in shown["partitions"]] == [64 * MIB, 36 * MIB]
    daemon.ok("snapshot", "create", "demo")
    assert daemon.ok("volume", "delete", "demo", "--yes") == "volume demo deleted, with 1 snapshot\n"
    assert json.loads(daemon.ok("device", "list", "--json")) == []
    assert [*(daemon.state_dir / "devices").iterdir(), *(daemon.state_dir / "volumes").iterdir()] == []
    assert exports(daemon) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "0"], "has a size of 0 B"),
        (["--size", "5000"], "has a size of 4.9 KiB (5000 bytes), which is not a multiple of 4 KiB; use 8K"),
        ([], "has no size; give --size"),
        (["--size", "1G", "--partition-size", "3M"], "not a power of two"),
        (["--size", "1G", "--partition-size", "512K"], "not a power of two"),
        (["--size", "2T", "--partition-size", "1M"], "more than the 1 TiB"),
        (["--size", "1G", "--processors", "0"], "0 is not a possible number of processors"),
        (["--size", "1G", "--processors", "257"], "1 to 256"),
        (["--size", "1G", "--device", "nix"], "no device 'nix'"),
        (["--size", "1G", "--log-device", "nix"], "no device 'nix'"),
        (["--base", "nix"], "no device 'nix'"),
        (["--size", "1G", "--device", "small"], "needs 1 GiB, and small has 7 MiB free"),
        (["--size", "1M", "--log-device", "small"], "needs 64 MiB, and small has 4 MiB"),
        (["--size", "1M", "--device", "small", "--device", "small"], "named twice"),
        (["--size", "1M", "--device", "image"], "adopted"),
        (["--base", "small"], "was not adopted"),
        (["--base", "image", "--size", "1M"], "leave out --size"),
    ],
)
def test_a_volume_that_cannot_be_is_refused_and_nothing_changes(
    daemon: Daemon, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "image").write_bytes(b"x" * MIB)
    daemon.ok("device", "add", str(tmp_path / "small"), "--size", "8M")
    daemon.ok("device", "add", str(tmp_path / "image"), "--adopt")
    before = daemon.ok("status", "--json").split('"uptime_s"')[1].split("\n", 1)[1]
    assert words in daemon.refused("volume", "create", "v", *arguments)
    assert daemon.ok("status", "--json").split('"uptime_s"')[1].split("\n", 1)[1] == before
    assert not list((daemon.state_dir / "devices").iterdir())


@pytest.mark.parametrize("name", ["a/b", "a@b", "a\nb", "\x1b[0m", "", "..", "x" * 65])
def test_bad_names_are_refused_for_every_noun(daemon: Daemon, tmp_path: Path, name: str) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    assert "volume name" in daemon.refused("volume", "create", name, "--size", "1M")
    assert "snapshot name" in daemon.refused("snapshot", "create", "v", "--name", name)
    path = str(tmp_path / "d")
    assert "device name" in daemon.refused("device", "add", path, "--size", "8M", "--name", name)
    assert not (tmp_path / "d").exists()
    if "@" not in name and name:
        assert "no volume" in daemon.refused("volume", "show", name)


def test_names_in_use_and_unknown_names_are_refused(daemon: Daemon, tmp_path: Path) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    assert "volume v exists already" in daemon.refused("volume", "create", "v", "--size", "1M")
    assert "snapshot v@s exists already" in daemon.refused("snapshot", "create", "v", "--name", "s")
    path = str(tmp_path / "d")
    assert "exists already" in daemon.refused("device", "add", path, "--size", "8M", "--name", "v.data")
    for arguments in (
        ["volume", "show", "nix"],
        ["volume", "delete", "nix", "--yes"],
        ["snapshot", "create", "nix"],
        ["snapshot", "create", "v", "nix"],
        ["snapshot", "list", "nix"],
        ["snapshot", "show", "v@nix"],
        ["snapshot", "show", "nix@s"],
        ["snapshot", "delete", "v@nix"],
        ["device", "show", "nix"],
        ["device", "remove", "nix"],
    ):
        assert "there is no" in daemon.refused(*arguments)
    assert "does not name a snapshot" in daemon.refused("snapshot", "delete", "v")
    assert "named twice" in daemon.refused("snapshot", "create", "v", "v")


def test_what_clients_are_connected_to_is_not_deleted(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    first, second = daemon.service.engine.open("v"), daemon.service.engine.open("v@s")
    assert json.loads(daemon.ok("volume", "show", "v", "--json"))["connections"] == 2
    words = daemon.refused("volume", "delete", "v", "--yes")
    hint = "first; `polyvol client list` shows who is connected"
    assert words == f"volume v is in use by 2 clients; disconnect them {hint}"
    words = daemon.refused("snapshot", "delete", "v@s")
    assert words == f"snapshot v@s is in use by 1 client; disconnect it {hint}"
    assert exports(daemon) == ["v", "v@s"]
    first.close()
    assert "in use by 1 client" in daemon.refused("volume", "delete", "v", "--yes")
    second.close()
    assert "--yes" in daemon.refused("volume", "delete", "v")
    daemon.ok("snapshot", "delete", "v@s")
    daemon.ok("volume", "delete", "v", "--yes")


def test_a_cut_over_several_volumes_has_one_name_and_one_instant(daemon: Daemon) -> None:
    for name in ("a", "b"):
        daemon.ok("volume", "create", name, "--size", "1M")
    daemon.ok("snapshot", "create", "a")
    made = json.loads(daemon.ok("snapshot", "create", "a", "b", "--json"))
    assert [each["volume"] for each in made] == ["a", "b"]
    assert len({(each["name"], each["cut"], each["created_ns"]) for each in made}) == 1
    assert re.fullmatch(r"\d{8}T\d{6}Z(-2)?", made[0]["name"])
    assert len(json.loads(daemon.ok("snapshot", "list", "--json"))) == 3
    assert len(json.loads(daemon.ok("snapshot", "list", "b", "--json"))) == 1
    shown = json.loads(daemon.ok("snapshot", "show", made[0]["export"], "--partitions", "--json"))
    assert shown["partitions"][0]["epoch"] == shown["epoch"]
    assert shown["stalls"] == [{"processor": 0, "stall_ns": 2000}, {"processor": 1, "stall_ns": 1999}]


def test_a_snapshot_is_read_back_as_it_was(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    live = daemon.service.engine.open("v")
    live.pwrite(b"old", 100)
    daemon.ok("snapshot", "create", "v", "--name", "s")
    live.pwrite(b"new", 100)
    frozen = daemon.service.engine.open("v@s")
    assert (frozen.pread(3, 100), live.pread(3, 100)) == (b"old", b"new")


def test_a_log_device_named_for_a_snapshot_gets_a_log_once(daemon: Daemon, tmp_path: Path) -> None:
    daemon.ok("device", "add", str(tmp_path / "fast"), "--size", "200M")
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("snapshot", "create", "v", "--name", "s1", "--log-device", "fast")
    daemon.ok("snapshot", "create", "v", "--name", "s2", "--log-device", "fast")
    shown = json.loads(daemon.ok("volume", "show", "v", "--json"))
    assert [(log["number"], log["default"], log["devices"]) for log in shown["logs"]] == [
        (1, True, ["v.log"]),
        (2, False, ["fast"]),
    ]
    assert json.loads(daemon.ok("snapshot", "show", "v@s2", "--json"))["log_devices"] == ["fast"]
    assert daemon.world.names().count("add_log") == 1
    assert "used by volume v" in daemon.refused("device", "remove", "fast")
    daemon.restart()
    assert exports(daemon) == ["v", "v@s1", "v@s2"]


def test_an_adopted_image_is_served_with_its_data_and_left_with_it(daemon: Daemon, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(range(256)) * 4096)
    assert "--adopt" in daemon.refused("device", "add", str(image))
    daemon.ok("device", "add", str(image), "--adopt")
    daemon.ok("volume", "create", "v", "--base", "image.raw")
    assert daemon.service.engine.open("v").pread(4, 4) == bytes([4, 5, 6, 7])
    assert "is used by volume v" in daemon.refused("volume", "create", "w", "--base", "image.raw")
    assert "is device image.raw already" in daemon.refused("device", "add", str(image), "--adopt")
    daemon.restart()
    daemon.ok("volume", "delete", "v", "--yes")
    daemon.ok("device", "remove", "image.raw")
    assert image.read_bytes() == bytes(range(256)) * 4096


def test_deleted_bytes_are_gone_from_a_shared_device(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "d"
    daemon.ok("device", "add", str(path), "--size", "8M")
    daemon.ok("volume", "create", "v", "--size", "4M", "--device", "d")
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"secret")
    daemon.ok("volume", "delete", "v", "--yes")
    assert b"secret" not in path.read_bytes()
    assert json.loads(daemon.ok("device", "show", "d", "--json"))["free"] == 7 * MIB
    daemon.ok("device", "remove", "d")
    daemon.ok("device", "add", str(path))


@pytest.mark.slow
def test_a_dry_run_shows_the_plan_and_changes_nothing(daemon: Daemon) -> None:
    plan = json.loads(daemon.ok("volume", "create", "v", "--size", "100M", "--dry-run", "--json"))
    assert [new["name"] for new in plan["new_devices"]] == ["v.data-0", "v.data-1", "v.log-0", "v.log-1"]
    assert plan["partitions"][1]["extents"] == [{"device": "v.data-1", "offset": MIB, "length": 36 * MIB}]
    table = daemon.ok("volume", "create", "v", "--size", "100M", "--dry-run", "--partitions")
    assert table.splitlines()[-1].split()[-4:] == ["1", "MiB", "36", "MiB"]
    large = ["volume", "create", "v", "--size", "1T", "--dry-run"]
    said = daemon.ok(*large)
    assert len(said.splitlines()) < 20
    assert "partitions: 16384 of 64 MiB\n" in said
    assert "devices:    v.data-0 (512 GiB), v.data-1 (512 GiB)\n" in said
    assert len(daemon.ok(*large, "--partitions").splitlines()) > 16384
    assert len(json.loads(daemon.ok(*large, "--json"))["partitions"]) == 16384
    result = daemon.run("volume", "create", "v", "--size", "1M", "--partitions")
    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(daemon.ok("volume", "list", "--json")) == []


def test_more_processors_than_there_are_can_be_asked_for(daemon: Daemon) -> None:
    daemon.ok("volume", "create", "v", "--size", "64M", "--partition-size", "1M", "--processors", "7")
    assert json.loads(daemon.ok("status", "--json"))["daemon"]["processors"] == 7
    daemon.restart()
    assert json.loads(daemon.ok("volume", "show", "v", "--json"))["processors"] == list(range(7))


def test_tables_name_everything_in_full(daemon: Daemon) -> None:
    name = "n" * 64
    daemon.ok("volume", "create", name, "--size", "1M")
    daemon.ok("snapshot", "create", name, "--name", "s" * 64)
    for arguments in (["volume", "list"], ["volume", "show", name, "--partitions"], ["status"]):
        assert name in daemon.ok(*arguments)
    export = f"{name}@{'s' * 64}"
    assert export in daemon.ok("snapshot", "list")
    assert export in daemon.ok("snapshot", "show", export, "--partitions")
    assert "storage" in daemon.ok("device", "list")
    assert "uuid" in daemon.ok("device", "show", json.loads(daemon.ok("device", "list", "--json"))[0]["name"])


def test_without_a_daemon_the_sentence_says_how_to_start_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["status", "--state-dir", str(tmp_path)])
    assert result.exit_code == 1
    why = "it has no control socket"
    assert result.stderr.startswith(f"polyvold is not running on {tmp_path}: {why}; start it")


@pytest.mark.parametrize(
    "arguments",
    [["volume", "create", "v", "--size", "1X"], ["volume", "create"], ["nix"], ["status", "--nix"]],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["scrub", "--weekly"], "option '--weekly' requires an argument; `polyvol scrub --help`"),
        (["volume", "create", "v", "--nix"], "no such option '--nix'; `polyvol volume create --help`"),
        (["volume", "--nix"], "no such option '--nix'; `polyvol volume --help`"),
        (["scrub", "v", "--rate", "0"], "'0' is not from 64 KiB to 1 TiB; `polyvol scrub --help`"),
        (["scrub", "v", "--rate", "2T"], "'2T' is not from 64 KiB to 1 TiB"),
        (
            ["client", "disconnect", "abc"],
            "invalid value for 'ID...': 'abc' is not a whole number of at least 1;",
        ),
        (["client", "disconnect", "1", "--export", "v"], "and not both; `polyvol client disconnect --help`"),
        (
            ["volume", "create", "v", "--szie", "1M"],
            "did you mean one of '--base', '--size'; `polyvol volume",
        ),
        (["rollback", "v@s"], "no such command 'rollback': did you mean `polyvol snapshot rollback`;"),
        (["volume", "hold"], "no such command 'hold': did you mean `polyvol snapshot hold`; `polyvol volume"),
        (["volume", "status"], "no such command 'status': did you mean `polyvol status`;"),
        (
            ["remove"],
            "no such command 'remove': did you mean `polyvol device remove` or `polyvol schedule remove`;",
        ),
        (["show"], "no such command 'show'; `polyvol --help`"),
        (
            ["snapshot", "create", "v@s"],
            "name the volume alone, and the snapshot by --name: v --name s; `polyvol",
        ),
        (["log", "list", "v@s"], "and the snapshot by --snapshot: v --snapshot s; `polyvol log list --help`"),
        (
            ["volume", "locate", "v@", "0"],
            "name the volume alone, and the snapshot by --snapshot: v --snapshot NAME",
        ),
        (["attach", "v", "--connections", "17"], "'17' is not a whole number from 1 to 16;"),
    ],
)
def test_usage_errors_name_the_command_and_what_is_possible(arguments: list[str], sentence: str) -> None:
    assert sentence in CliRunner().invoke(cli, arguments, prog_name="polyvol").stderr
