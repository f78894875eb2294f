"""test_older_directories: state directories that older polyvolds made, with each version of the formats.

How it works      tests/older has one archive for each: the state directory of that commit, and in
                  exports.json the SHA-256 of what each of its exports held. tests/older/make.py made them:
                  volumes with two processors, snapshots, a clone, a rollback, zeroes, trims. "killed": by
                  SIGKILL after the last flush; "stopped": by SIGTERM. The polyvold of this tree is started on
                  a copy. In some tests it is killed during that start, before any of its calls that change
                  files.
What must hold    every export has its content, after that start and any later ones.
"""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.crash.recorder import Calls
from tests.older.make import held
from tests.support import forks, nbd
from tests.support.daemon import Daemon, short_directory
from tests.support.proc import check, wait_until

ARCHIVES = sorted((Path(__file__).parents[1] / "older").glob("*.tar.xz"))
MIB = 1 << 20
KILLS = 4
"""How often a first start is killed."""

pytestmark = pytest.mark.slow


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where an archive is unpacked."""
    with short_directory() as path:
        yield path


def unpacked(archive: Path, directory: Path) -> dict[str, str]:
    """Unpack a state directory, in place of an earlier one; what its exports hold."""
    shutil.rmtree(directory / "state", ignore_errors=True)
    check("tar", "-C", directory, "-xJf", archive)
    found: dict[str, str] = json.loads((directory / "exports.json").read_text())
    return found


def name_of(archive: Path) -> str:
    """Its name without the endings."""
    return archive.name.split(".")[0]


def all_held(daemon: Daemon, exports: dict[str, str]) -> None:
    """Every export is there, with its content."""
    assert {name: held(daemon.uri(name)) for name in exports} == exports


def checked(directory: Path) -> None:
    """`polyvol check` finds nothing wrong in the state, its blocks included."""
    result = forks.run("polyvol", "check", "--data", "--state-dir", directory / "state")
    assert result.rc == 0, f"{result.out}{result.err}"


def relocated(daemon: Daemon) -> bool:
    """Whether nothing is to be moved any more."""
    found = [daemon.volume(name)["relocation"] for name in ("v", "w")]
    return found[1]["moved"] > 0 and all(each["state"].startswith("nothing to move") for each in found)


@pytest.mark.parametrize("archive", ARCHIVES, ids=name_of)
def test_an_older_directory_is_taken_over(archive: Path, directory: Path) -> None:
    exports = unpacked(archive, directory)
    checked(directory)
    with Daemon(directory) as daemon:
        all_held(daemon, exports)
        with nbd.connect(daemon.uri("v")) as host:
            host.pwrite(b"new!" * (MIB // 4), 4 * MIB)
            host.flush()
        daemon.ok("snapshot", "create", "v", "--name", "three")
        now = {**exports, "v": held(daemon.uri("v")), "v@three": held(daemon.uri("v@three"))}
        assert now["v"] == now["v@three"] != exports["v"]
        daemon.kill()
        daemon.start()
        all_held(daemon, now)
        gone = ("w@past", "w@before-past", "v@two")
        daemon.ok("snapshot", "delete", *gone)
        now = {name: content for name, content in now.items() if name not in gone}
        wait_until(lambda: relocated(daemon), "the end of relocation", 120)
        all_held(daemon, now)
    checked(directory)
    with Daemon(directory) as daemon:
        all_held(daemon, now)


@pytest.mark.parametrize("archive", ARCHIVES, ids=name_of)
def test_a_first_start_that_is_killed_loses_nothing(archive: Path, directory: Path) -> None:
    exports = unpacked(archive, directory)
    calls = Calls(directory / "state", directory / "calls")
    with Daemon(directory, env=calls.environment) as daemon:
        daemon.kill()
        assert calls.count > KILLS
        drawn = random.Random(archive.name)
        for at in sorted(drawn.sample(range(1, calls.count + 1), KILLS)):
            unpacked(archive, directory)
            calls.begin()
            calls.kill_at(at)
            with suppress(AssertionError):  # it has ended
                daemon.start()
            daemon.kill()
            calls.begin()
            daemon.start()
            all_held(daemon, exports)
            daemon.kill()
