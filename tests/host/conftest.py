"""conftest: the package, and one virtual machine for all tests of this folder.

How it works      The package is built from this checkout and kept under build/host until something that goes
                  into it changes. The tests of test_host.py are one life of one machine, in their order: when
                  one fails the others cannot say anything and are skipped, and the console log is shown.
"""

import hashlib
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.host.image import CACHE, ROOT, ensure_image
from tests.host.machine import Machine
from tests.support.daemon import short_directory
from tests.support.proc import check

INPUTS = (
    "daemon",
    "debian",
    "engine",
    "mapping",
    "nbd_plugin",
    "scripts",
    "snapshot",
    "systemd",
    "pyproject.toml",
)
CONSOLE_LINES = 400
_failed: list[str] = []
"""The tests of the machine that failed."""


def ensure_package() -> Path:
    """The Debian package of this checkout, built if it is not there."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *INPUTS]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, timeout=30).stdout.decode()
    digest = hashlib.sha256()
    for name in sorted(filter(None, names.split("\0"))):
        if (ROOT / name).is_file():
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    package = CACHE / f"polyvol-{digest.hexdigest()[:16]}.deb"
    if not package.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob("polyvol-*.deb"):
            old.unlink()
        check(ROOT / "scripts" / "build-deb", "--output", package.with_suffix(".new"), timeout_s=600)
        package.with_suffix(".new").rename(package)
    return package


def newer_package(package: Path, directory: Path) -> Path:
    """The same package with a higher version, to upgrade to."""
    tree, newer = directory / "newer", directory / "newer.deb"
    check("dpkg-deb", "-R", package, tree)
    control = tree / "DEBIAN" / "control"
    lines = control.read_text().splitlines()
    changed = [f"{line}+1" if line.startswith("Version: ") else line for line in lines]
    control.write_text("\n".join(changed) + "\n")
    check("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", tree, newer)
    return newer


@pytest.fixture(scope="session")
def running() -> Iterator[Machine]:
    """The machine, with the packages in /payload."""
    package = ensure_package()
    with short_directory() as directory:
        files = {"polyvol.deb": package, "newer.deb": newer_package(package, directory)}
        with Machine(directory, ensure_image(), files) as machine:
            yield machine


@pytest.fixture
def machine(running: Machine) -> Machine:
    """The machine, unless an earlier test has failed on it."""
    if _failed:
        pytest.skip(f"{_failed[0]} failed on this machine before")
    return running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note a failure, and put the end of the machine's console into its report."""
    report = yield
    running = getattr(item, "funcargs", {}).get("machine")
    if report.failed and isinstance(running, Machine):
        _failed.append(item.name)
        lines = running.console().splitlines()[-CONSOLE_LINES:]
        report.sections.append(("console of the virtual machine", "\n".join(lines)))
    return report
