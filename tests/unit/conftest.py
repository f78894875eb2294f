"""What the unit tests share: a polyvold on the sim engine, and its command line in this process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from polyvol.daemon.client.cli.commands import cli
from polyvol.daemon.service import Service
from polyvol.mapping.catalog.store import Catalog
from tests.support.sim_engine import SimWorld


@dataclass
class Daemon:
    """A service with its control socket, and the ways to talk to it."""

    state_dir: Path
    world: SimWorld
    service: Service

    def run(self, *arguments: str) -> Result:
        """`polyvol ARGUMENTS`: its output and its exit code."""
        return CliRunner().invoke(cli, [*arguments, "--state-dir", str(self.state_dir)])

    def ok(self, *arguments: str) -> str:
        """`polyvol ARGUMENTS`, which must succeed: its output."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def refused(self, *arguments: str) -> str:
        """`polyvol ARGUMENTS`, which must be refused with one sentence: that sentence."""
        result = self.run(*arguments)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.strip()

    def restart(self, *, processors: int = 2) -> None:
        """Stop the service and start another on the same state."""
        self.service.stop()
        self.start(processors=processors)

    def start(self, *, processors: int = 2) -> None:
        """Start a service on this state."""
        self.service = Service(self.state_dir, processors=processors, engine_module=self.world)
        self.service.start()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    world = SimWorld()
    daemon = Daemon(tmp_path / "state", world, Service(tmp_path / "state", processors=2, engine_module=world))
    daemon.service.start()
    yield daemon
    daemon.service.stop()


@pytest.fixture
def grouped(daemon: Daemon) -> Daemon:
    """Group g of volumes a and b, with a snapshot s."""
    for name in "ab":
        daemon.ok("volume", "create", name, "--size", "1M")
    daemon.ok("group", "create", "g", "a", "b")
    daemon.ok("snapshot", "create", "@g", "--name", "s")
    return daemon


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(tmp_path / "catalog.db")
    yield catalog
    catalog.close()


@pytest.fixture
def sparse_file(tmp_path: Path) -> Callable[[str, int], Path]:
    """Makes a sparse file of a size."""

    def make(name: str, size: int) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    return make
