"""The shipped hooks: what they run, and in which order. fsfreeze itself is tested on a real file system."""

import subprocess
from pathlib import Path

import pytest

HOOKS = Path(__file__).resolve().parents[3] / "scripts" / "hooks"


def hook(
    name: str, stage: str, *arguments: object, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin:/usr/sbin:/sbin"}
    if stage:
        environment |= {"POLYVOL_STAGE": stage, "POLYVOL_STATE": "/"}
    command = [str(HOOKS / name), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_generic_runs_forwards_and_backwards_and_tells_failures(tmp_path: Path) -> None:
    notes, scripts = tmp_path / "notes", tmp_path / "scripts"
    scripts.mkdir()
    for name in ("10-a", "20-b"):
        script(scripts / name, f"echo $1 {name} >> {notes}")
    (scripts / "30-readme").write_text("is not run")
    assert hook("generic", "quiesce", scripts).returncode == 0
    assert hook("generic", "thaw", scripts).returncode == 0
    assert notes.read_text().splitlines() == ["quiesce 10-a", "quiesce 20-b", "thaw 20-b", "thaw 10-a"]
    notes.unlink()
    script(scripts / "10-a", f"echo $1 >> {notes}; exit 1")
    failed = hook("generic", "quiesce", scripts)
    assert (failed.returncode, failed.stderr) == (1, f"{scripts}/10-a failed\n")
    script(scripts / "20-b", "exit 1")
    assert hook("generic", "thaw", scripts).returncode == 1
    assert notes.read_text().splitlines() == ["quiesce", "thaw"]  # a thaw goes on behind one that fails


def test_postgresql_has_a_checkpoint_written_before_the_cut(tmp_path: Path) -> None:
    script(tmp_path / "psql", f'for word; do echo "$word"; done > {tmp_path}/said')
    assert hook("postgresql", "quiesce", "host=/run/x", "user=b", path=tmp_path).returncode == 0
    said = (tmp_path / "said").read_text().splitlines()
    assert said[-2:] == ["CHECKPOINT", "host=/run/x user=b"]
    assert "--no-password" in said
    script(tmp_path / "psql", "echo could not connect >&2; exit 2")
    assert hook("postgresql", "quiesce", path=tmp_path).returncode == 2
    assert hook("postgresql", "thaw", path=tmp_path).returncode == 0


def test_fsfreeze_never_freezes_the_system_or_what_is_not_mounted(tmp_path: Path) -> None:
    script(tmp_path / "fsfreeze", f"echo $@ >> {tmp_path}/said")
    refused = hook("fsfreeze", "quiesce", tmp_path, path=tmp_path)
    assert (refused.returncode, refused.stderr) == (1, f"{tmp_path} is not mounted\n")
    assert hook("fsfreeze", "quiesce", "/", path=tmp_path).returncode == 1
    assert not (tmp_path / "said").exists()
    assert hook("fsfreeze", "thaw", "/a b", "/c", path=tmp_path).returncode == 0
    assert (tmp_path / "said").read_text().splitlines() == ["--unfreeze /c", "--unfreeze /a b"]


@pytest.mark.parametrize("name", ["fsfreeze", "generic", "postgresql"])
def test_without_a_stage_nothing_is_done(name: str, tmp_path: Path) -> None:
    assert hook(name, "", tmp_path).returncode != 0
    assert hook(name, "other", tmp_path).returncode == 2


def test_a_thaw_that_fails_is_told_and_the_others_are_thawed(tmp_path: Path) -> None:
    script(
        tmp_path / "fsfreeze",
        f'echo "$2" >> {tmp_path}/said\n'
        'case $2 in /a) echo "fsfreeze: /a: unfreeze failed: Invalid argument" >&2; exit 1 ;;\n'
        '/b) echo "fsfreeze: /b: unfreeze failed: Input/output error" >&2; exit 1 ;; esac',
    )
    thawed = hook("fsfreeze", "thaw", "/a", "/b", "/c", path=tmp_path)
    assert (tmp_path / "said").read_text().split() == ["/c", "/b", "/a"]
    why = "/b is perhaps still frozen: fsfreeze: /b: unfreeze failed: Input/output error\n"
    assert (thawed.returncode, thawed.stderr) == (1, why)
    assert hook("fsfreeze", "thaw", "/a", "/c", path=tmp_path).returncode == 0  # /a was not frozen
