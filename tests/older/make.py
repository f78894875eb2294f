"""make: a state directory of the polyvold of another work tree, and what its exports held, as an archive.

    .venv/bin/python -m tests.older.make TREE ARCHIVE killed|stopped

How it works      TREE is a work tree of an older commit, with its .venv. Its polyvold makes volumes with two
                  processors, snapshots, a clone and a rollback. A block has one short text many times, so
                  that the archive is small. tests/crash/test_older_directories.py reads it.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import nbd
from tests.support.daemon import short_directory
from tests.support.proc import Background, check, wait_until

MIB = 1 << 20
BLOCK = 4096
EXPORTS = ("v", "v@one", "v@two", "c", "w", "w@past", "w@before-past", "untouched")


class Older:
    """The polyvold of a tree, on a state directory."""

    def __init__(self, tree: Path, directory: Path) -> None:
        self.tree, self.state = tree, directory / "state"
        program = tree / ".venv" / "bin" / "polyvold"
        self.process = Background(program, "--state-dir", self.state, log=directory / "polyvold.log")

    def cli(self, *words: str) -> int:
        """Run its `polyvol`; the exit status."""
        env = {**os.environ, "POLYVOL_STATE": str(self.state)}
        program = self.tree / ".venv" / "bin" / "polyvol"
        return subprocess.run([program, *words], env=env, check=False, timeout=60).returncode

    def ok(self, *words: str) -> None:
        """Run its `polyvol`, and have it succeed."""
        code = self.cli(*words)
        assert code == 0, f"polyvol {' '.join(words)} gave {code}"

    def uri(self, export: str) -> str:
        """The NBD address of an export."""
        return nbd.uri(export, self.state / "nbd.sock")


def write(host: Any, tag: str, first: int, blocks: int) -> None:
    """Write blocks, each with the tag and its number."""
    for block in range(first, first + blocks):
        text = f"{tag}:{block:08d};".encode()
        host.pwrite((text * (BLOCK // len(text) + 1))[:BLOCK], block * BLOCK)


def fill(older: Older) -> None:
    """Make the volumes, and all that happens to them."""
    older.ok("volume", "create", "v", "--size", "24M", "--partition-size", "4M", "--processors", "2")
    with nbd.connect(older.uri("v")) as host:
        for first, blocks in ((0, 700), (2000, 900), (5000, 300)):
            write(host, "base", first, blocks)
        host.flush()
        older.ok("snapshot", "create", "v", "--name", "one")
        for first, blocks in ((100, 200), (2500, 100), (6000, 40)):
            write(host, "after-one", first, blocks)
        host.zero(50 * BLOCK, 300 * BLOCK)
        host.trim(64 * BLOCK, 400 * BLOCK)
        host.flush()
        older.ok("snapshot", "create", "v", "--name", "two")
        write(host, "after-two", 150, 300)
        write(host, "after-two", 2000, 20)
        host.trim(100 * BLOCK, 5000 * BLOCK)
        host.flush()
    older.ok("volume", "clone", "v@one", "c")
    with nbd.connect(older.uri("c")) as host:
        write(host, "clone", 0, 30)
        host.zero(20 * BLOCK, 2600 * BLOCK)
        host.flush()
    older.ok("volume", "create", "w", "--size", "8M", "--partition-size", "4M", "--processors", "2")
    with nbd.connect(older.uri("w")) as host:
        write(host, "w", 0, 300)
        write(host, "w", 1500, 100)
        host.flush()
        older.ok("snapshot", "create", "w", "--name", "past")
        write(host, "w-later", 50, 300)
        host.flush()
    older.ok("snapshot", "rollback", "w@past")
    with nbd.connect(older.uri("w")) as host:
        write(host, "w-again", 10, 10)
        host.flush()
    older.ok("volume", "create", "untouched", "--size", "4M", "--partition-size", "4M")


def held(address: str) -> str:
    """The SHA-256 of an export."""
    with nbd.connect(address) as host:
        content = b"".join(bytes(host.pread(MIB, at)) for at in range(0, host.get_size(), MIB))
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """See the module's head."""
    tree, archive, end = Path(sys.argv[1]), Path(sys.argv[2]).absolute(), sys.argv[3]
    assert end in ("killed", "stopped")
    with short_directory() as directory:
        older = Older(tree, directory)
        with older.process:
            wait_until(lambda: older.cli("status") == 0, "polyvold's answer")
            fill(older)
            found = {name: held(older.uri(name)) for name in EXPORTS}
            os.kill(older.process.pid, signal.SIGKILL if end == "killed" else signal.SIGTERM)
            older.process.wait()
        for socket in older.state.glob("*.sock"):
            socket.unlink()
        (directory / "exports.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        options = ("--sparse", "--owner=0", "--group=0", "-C", directory)
        check("tar", *options, "-cJf", archive, "state", "exports.json")


if __name__ == "__main__":
    main()
