"""test_version: what --version and the API say a polyvol was built from."""

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from polyvol import engine
from polyvol.daemon import version
from tests.style.test_tidy import ROOT
from tests.support.daemon import BIN
from tests.support.proc import check

COMMIT = "0123456789abcdef" * 2 + "01234567"


def git(directory: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t.invalid", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout.decode().strip()


def repository(directory: Path) -> str:
    directory.mkdir()
    git(directory, "init", "-q", "-b", "work/topic")
    git(directory, "commit", "-q", "--allow-empty", "-m", "first")
    return git(directory, "rev-parse", "HEAD")


def test_the_commit_is_that_of_the_branch_loose_packed_and_detached(tmp_path: Path) -> None:
    root = tmp_path / "clone"
    first = repository(root)
    assert version.source_commit(root) == first
    git(root, "pack-refs", "--all")
    assert version.source_commit(root) == first
    git(root, "commit", "-q", "--allow-empty", "-m", "second")
    second = git(root, "rev-parse", "HEAD")
    assert version.source_commit(root) == second
    git(root, "checkout", "-q", "--detach", first)
    assert version.source_commit(root) == first


def test_the_commit_of_another_work_tree_is_its_own(tmp_path: Path) -> None:
    root, other = tmp_path / "clone", tmp_path / "other"
    first = repository(root)
    git(root, "worktree", "add", "-q", str(other))
    git(root, "commit", "-q", "--allow-empty", "-m", "second")
    assert version.source_commit(other) == first
    assert version.source_commit(root) != first


def test_sources_without_git_have_what_was_recorded(tmp_path: Path) -> None:
    assert version.source_commit(tmp_path) is None
    (tmp_path / "debian").mkdir()
    recorded = tmp_path / "debian" / "commit"
    recorded.write_text("\n")
    assert version.source_commit(tmp_path) is None
    recorded.write_text(f"{COMMIT}\n")
    assert version.source_commit(tmp_path) == COMMIT


def test_a_repository_around_the_sources_does_not_count(tmp_path: Path) -> None:
    root = tmp_path / "clone"
    repository(root)
    (root / "polyvol").mkdir()
    assert version.source_commit(root / "polyvol") is None


def test_what_git_archives_knows_its_commit(tmp_path: Path) -> None:
    root = tmp_path / "clone"
    repository(root)
    (root / "daemon").mkdir()
    for name in (".gitattributes", "daemon/version.py"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "second")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    archive = tmp_path / "a.tar"
    git(root, "archive", "-o", str(archive), "HEAD")
    check("tar", "-xf", archive, "-C", unpacked)
    of = runpy.run_path(str(unpacked / "daemon" / "version.py"))
    assert of["source_commit"](unpacked) == git(root, "rev-parse", "HEAD")


def test_a_package_has_what_its_build_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "_HERE", tmp_path)
    version.build.cache_clear()
    try:
        (tmp_path / version.BUILD_FILE).write_text(json.dumps({"commit": COMMIT, "date": "2026-11-30"}))
        said = version.version_text("polyvol")
    finally:
        version.build.cache_clear()
    made = f"commit {COMMIT[:8]}, built 2026-11-30, engine {engine.__profile__}, rustc {engine.__rustc__}"
    assert said == f"polyvol {version.version()} ({made})"


@pytest.mark.parametrize("program", ["polyvol", "polyvold"])
def test_both_programs_say_their_version(program: str) -> None:
    head = git(ROOT, "rev-parse", "HEAD")[:8]
    said = check(BIN / program, "--version")
    wanted = rf"{program} [0-9.]+ \(commit {head}, run from its sources, engine \w+, rustc [0-9.]+\)\n"
    assert re.fullmatch(wanted, said)
