"""test_packaging: both ways of installing polyvol give the same package.

The editable install is what the tests themselves run on; a wheel is built here and imported by itself. Either
can work while the other is broken: they find the engine and the data files in different ways.
"""

import sys
import zipfile
from pathlib import Path

import pytest

from polyvol.daemon.version import source_commit, version
from tests.style.test_tidy import PACKAGES, ROOT, repository_files, where
from tests.support.proc import check

LOOK = "import polyvol.engine as e, polyvol.daemon.main as m; print(e.__file__); print(m.__file__)"


def imported_from(*, python_path: Path | None = None) -> list[Path]:
    """Where a fresh interpreter finds the engine and the daemon."""
    env = {} if python_path is None else {"PYTHONPATH": str(python_path)}
    return [Path(line) for line in check(sys.executable, "-c", LOOK, env=env, cwd=Path("/")).splitlines()]


def test_an_editable_install_has_the_engine_beside_its_stub() -> None:
    engine, daemon = imported_from()
    assert engine.parent == ROOT / "engine" / "python"
    assert daemon == ROOT / "daemon" / "main.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_wheel_has_the_engine_and_all_files(tmp_path: Path) -> None:
    build = (
        "source scripts/lib.sh && as_released test-wheel"
        ' "$VENV/bin/pip" wheel --no-build-isolation --no-deps --wheel-dir "$1" "$ROOT"'
    )
    env = {"SOURCE_DATE_EPOCH": "1000000000"}
    check("bash", "-c", build, "wheel", tmp_path, env=env, cwd=ROOT, timeout_s=600)
    (wheel,) = tmp_path.glob("polyvol-*-cp311-abi3-linux_*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    wanted = repository_files(*(f"{package}/*{end}" for package in PACKAGES for end in (".py", ".sql")))
    assert [where(path) for path in wanted if f"polyvol/{where(path)}" not in names] == []
    assert {"polyvol/py.typed", "polyvol/engine.pyi", "polyvol/__init__.py"} <= names
    engine, daemon = imported_from(python_path=tmp_path / "installed")
    assert engine.is_relative_to(tmp_path)
    assert daemon.is_relative_to(tmp_path)
    knows_its_build(tmp_path / "installed", tmp_path)


def knows_its_build(installed: Path, directory: Path) -> None:
    """A package says what it was built from, and runs no program for that."""
    called = directory / "called"
    (directory / "bin").mkdir()
    fake = directory / "bin" / "git"
    fake.write_text(f"#!/bin/sh\necho called >{called}\n")
    fake.chmod(0o755)
    env = {"PYTHONPATH": str(installed), "PATH": f"{fake.parent}:/usr/bin:/bin"}
    for program, module in (("polyvol", "client.cli.main"), ("polyvold", "main")):
        run = f"import sys; from polyvol.daemon.{module} import main; sys.argv[1:] = ['--version']; main()"
        said = check(sys.executable, "-c", run, env=env, cwd=directory)
        wanted = f"commit {source_commit(ROOT)}"[:15] + ", built 2001-09-09, engine release, rustc "
        assert said.startswith(f"{program} {version()} ({wanted}"), said
    assert not called.exists()
