"""PostgreSQL on a mounted file system: every snapshot under load, mounted as a clone, is a whole database.

How it works      A cluster of Debian's PostgreSQL on ext4 on a volume (nbdfuse, a loop device), pgbench at
                  it, and snapshots without hooks during that. Each is cloned, mounted read-write, started and
                  so recovered, then read by pg_amcheck, and asked for what pgbench keeps true: that all its
                  sums agree, and that what an older snapshot had committed is there. The server listens on
                  a unix socket only.
"""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import fuse, nbd
from tests.support.daemon import Daemon
from tests.support.proc import Background, check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SNAPSHOTS = 6
SCALE = 2
USER = "postgres"
HOOK = Path(__file__).resolve().parents[2] / "scripts" / "hooks" / "postgresql"
SUMS = (
    "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches), "
    "(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history), "
    "(SELECT count(*) FROM pgbench_history)"
)
SETTINGS = (
    "shared_buffers = '32MB'\nmax_wal_size = '64MB'\ncheckpoint_timeout = '30s'\nlisten_addresses = ''\n"
    "autovacuum_naptime = '2s'\n"
)


def program(name: str) -> Path:
    """A program of the newest PostgreSQL that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    assert found, f"PostgreSQL's {name} is not installed: run scripts/setup test"
    return found[-1]


def as_user(name: str, *arguments: str | Path, timeout_s: float = 60) -> str:
    """Run one of PostgreSQL's programs as the user that owns the cluster; its output."""
    return check("runuser", "-u", USER, "--", program(name), *arguments, timeout_s=timeout_s)


@contextmanager
def file_system(daemon: Daemon, volume: str, directory: Path) -> Iterator[Path]:
    """A volume, mounted read-write below a directory that PostgreSQL's user may enter."""
    directory.mkdir()
    with (
        fuse.block_device(nbd.uri(volume, daemon.nbd_socket), directory) as device,
        fuse.mount(device, directory) as mounted,
    ):
        yield mounted


@contextmanager
def server(mounted: Path, sockets: Path) -> Iterator[tuple[str, ...]]:
    """PostgreSQL on the cluster of a mounted file system; the options of its clients."""
    cluster = mounted / "cluster"
    options = f"-c unix_socket_directories={shlex.quote(str(sockets))}"
    log = sockets / "server.log"
    # In a clone: of the server that ran, whose process id may be another's by now.
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    try:
        as_user("pg_ctl", "start", "-w", "-D", cluster, "-l", log, "-o", options)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from None
    try:
        yield "-h", str(sockets), "-U", USER
    finally:
        as_user("pg_ctl", "stop", "-w", "-m", "fast", "-D", cluster)


def sums(at: tuple[str, ...]) -> list[int]:
    """What pgbench keeps equal, and how many transactions there were."""
    text = as_user("psql", *at, "-d", "bench", "-AtX", "-F", " ", "-c", SUMS)
    return [int(word) for word in text.split()]


@pytest.fixture
def sockets(short_dir: Path) -> Path:
    """A directory for PostgreSQL's socket and log."""
    fuse.needed()
    short_dir.chmod(0o755)
    path = short_dir / "pg"
    path.mkdir()
    shutil.chown(path, USER)
    return path


def make_cluster(mounted: Path) -> None:
    """A cluster on a file system."""
    cluster = mounted / "cluster"
    cluster.mkdir(mode=0o700)
    shutil.chown(cluster, USER)
    as_user("initdb", "-D", cluster, "-A", "trust", "--no-locale", "-E", "UTF8", "-k")
    with (cluster / "postgresql.conf").open("a") as settings:
        settings.write(SETTINGS)
    check("sync", "--file-system", cluster)  # initdb syncs what it writes, not this


def test_every_snapshot_under_load_is_a_whole_database(daemon: Daemon, sockets: Path) -> None:
    daemon.directory.chmod(0o755)
    daemon.ok("volume", "create", "db", "--size", "1G")
    with fuse.block_device(nbd.uri("db", daemon.nbd_socket), daemon.directory) as device:
        check("mkfs.ext4", "-q", device)
    with file_system(daemon, "db", daemon.directory / "live") as mounted:
        make_cluster(mounted)
        with server(mounted, sockets) as at:
            as_user("createdb", *at, "bench")
            as_user("pgbench", *at, "-i", "-q", "-s", str(SCALE), "bench")
            load_log = daemon.directory / "pgbench.log"
            command = ("-c", "4", "-T", "120", "bench")
            with Background(
                "runuser", "-u", USER, "--", program("pgbench"), *at, *command, log=load_log
            ) as load:
                for number in range(SNAPSHOTS):
                    before = sums(at)[-1]
                    daemon.ok("snapshot", "create", "db", "--name", f"s{number}")
                    (daemon.directory / f"before-{number}").write_text(str(before))
                assert load.rc is None, load_log.read_text()
            daemon.ok("volume", "set", "db", "--quiesce", f"{HOOK} host={sockets} user={USER} dbname=bench")
            daemon.ok("snapshot", "create", "db", "--name", "quiesced")
    marks = {each["name"]: each["consistency"] for each in daemon.snapshots("db")}
    assert marks == {**{f"s{number}": "crash" for number in range(SNAPSHOTS)}, "quiesced": "application"}
    seen = 0
    for name in marks:
        daemon.ok("volume", "clone", f"db@{name}", "copy")
        with (
            file_system(daemon, "copy", daemon.directory / f"copy-{name}") as mounted,
            server(mounted, sockets) as at,
        ):
            as_user("pg_amcheck", *at, "--all", "--install-missing", "--heapallindexed", timeout_s=120)
            *balances, committed = sums(at)
            assert len(set(balances)) == 1, f"{name}: {balances}"
            if name != "quiesced":
                assert committed >= int((daemon.directory / f"before-{name[1:]}").read_text())
            assert committed >= seen, f"{name} has less than the snapshot before it"
            seen = committed
        daemon.ok("volume", "delete", "copy", "--yes")
    assert seen > 0
