"""attached: a host with its own places for records and links, that attaches what a daemon serves."""

import json
import os
from pathlib import Path

import pytest

from polyvol.daemon.client.attach.records import Places
from tests.support import forks, fuse
from tests.support.daemon import BIN, Daemon
from tests.support.proc import check, run

WITHOUT_SYSTEMD = not Path("/run/systemd/system").is_dir()


class Host:
    """A host with its own places for records and links, that attaches what a daemon serves."""

    def __init__(self, daemon: Daemon) -> None:
        fuse.needed()
        if not WITHOUT_SYSTEMD:
            pytest.skip("systemd runs here, and would be told to supervise what is attached")
        self.daemon = daemon
        self.root = daemon.directory / "root"
        self.env = {"POLYVOL_STATE": str(daemon.state_dir), "POLYVOL_ATTACH_ROOT": str(self.root)}

    def ok(self, *arguments: str | Path) -> str:
        result = forks.run("polyvol", *arguments, env=self.env)
        assert result.rc == 0, result
        return result.out

    def refused(self, *arguments: str | Path) -> str:
        result = forks.run("polyvol", *arguments, env=self.env)
        assert result.rc == 1, result
        assert result.out == ""
        assert result.err.count("\n") == 1
        return result.err

    def listed(self) -> dict[str, dict[str, object]]:
        return {each["name"]: each for each in json.loads(self.ok("attach", "--list", "--json"))}

    def loops(self) -> list[str]:
        """The loop devices over what nbdfuse shows here."""
        lines = check("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines()
        return [line.split()[0] for line in lines if str(self.root) in line]

    def nbdfuses(self) -> list[int]:
        """The processes of nbdfuse that show something here."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                command = (process / "cmdline").read_bytes() if process.name.isdecimal() else b""
            except OSError:
                continue
            if command.startswith(b"nbdfuse\0") and os.fsencode(self.root) in command:
                found.append(int(process.name))
        return found

    def left(self) -> list[object]:
        """Everything that there is of attached devices, but for empty directories."""
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.root) in line]
        files = [path for path in self.root.rglob("*") if not path.is_dir()]
        return [*self.loops(), *self.nbdfuses(), *mounts, *files]

    def clean(self) -> None:
        """End everything, however it was left."""
        for name in Places(self.root).names():
            run(BIN / "polyvol", "detach", name, "--force", env=self.env)
