"""A machine that lacks something: the first command says what, in one sentence, before it installs anything.

How it works      A Debian 12 as debootstrap leaves it, of a user with sudo. Each test takes something away in
                  mounts of its own, runs the first command, and looks that nothing was installed.
"""

import re
from collections.abc import Iterator

import pytest

from tests.fresh.machine import SOMEBODY, Machine

pytestmark = [pytest.mark.fresh, pytest.mark.few, pytest.mark.slow, pytest.mark.timeout(900)]

# $1: the file of a lock, as apt and dpkg take it; held for 10 s.
HOLD = r"""
perl -MFcntl -e '
    open LOCK, ">>", $ARGV[0] or die;
    $lock = pack("s s x4 q q l x4", F_WRLCK, 0, 0, 0, 0);
    fcntl(LOCK, F_SETLK, $lock) or die "not locked: $!";
    sleep 10' "$1" & holder=$!
sleep 0.5
"""
# Part of the first command: apt's lists, one small package.
INSTALL_ONE = """
. scripts/lib.sh
become_root
read_sources
check_install nano
install_packages nano
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine("bookworm", SOMEBODY) as machine:
        yield machine


def refusal(machine: Machine, script: str, *, user: str | None = None) -> str:
    """The one sentence with which a script ends, having installed nothing."""
    before = machine.ok("dpkg-query -W")
    refused = machine.run(script, user=user, timeout_s=300)
    assert refused.rc == 1, refused
    assert machine.ok("dpkg-query -W; ls -d .venv 2>/dev/null || true") == before
    return refused.err.splitlines()[-1]


def test_where_rust_is_too_old_the_missing_suite_is_named(machine: Machine) -> None:
    said = refusal(machine, "scripts/run")
    assert "only 1.85" in said
    assert re.search(r"`deb http\S+ bookworm-security main`", said)
    assert said.endswith("Nothing was installed.")


def test_without_a_network_the_registry_is_named(machine: Machine) -> None:
    said = refusal(machine, "sudo unshare --net scripts/run")
    assert "pypi.org does not answer on port 443" in said
    assert said.endswith("Nothing was installed.")


def test_without_a_network_but_a_proxy_apt_tells_it(machine: Machine) -> None:
    command = "sudo unshare --net env https_proxy=http://localhost:1 scripts/run"
    assert "apt could not read all of its sources, as told above" in refusal(machine, command)


def test_without_room_the_directory_and_the_need_are_named(machine: Machine) -> None:
    small = "mkdir -p /small && mount -t tmpfs -o size=100M none /small && cp -r . /small/clone"
    said = refusal(machine, f"{small} && /small/clone/scripts/run", user="root")
    assert re.search(r"/small/clone has \d+ MB free, and about 3000 MB are needed", said)


def test_without_sudo_the_packages_are_named(machine: Machine) -> None:
    machine.ok("mv /usr/bin/sudo /root", user="root")
    try:
        said = refusal(machine, "scripts/run")
    finally:
        machine.ok("mv /root/sudo /usr/bin", user="root")
    assert "no sudo here: run as root, or have installed first: apt-get install" in said
    assert "rustc-web" in said


@pytest.mark.parametrize(
    "rule", ["somebody ALL=(ALL) ALL", "root ALL=(ALL) ALL"], ids=["password", "not-allowed"]
)
def test_where_sudo_does_not_let_become_root_that_is_said(machine: Machine, rule: str) -> None:
    machine.ok(f"echo '{rule}' >/rule; chmod 440 /rule", user="root")
    said = refusal(machine, "sudo mount --bind /rule /etc/sudoers.d/test; scripts/run")
    assert (
        "sudo does not let this user become root: run as root, or have installed first: apt-get install"
        in said
    )


def test_sources_that_are_not_needed_may_be_unreadable(machine: Machine) -> None:
    source = (
        "echo 'deb http://nobody.invalid/debian bookworm main' | sudo tee /etc/apt/sources.list.d/nobody.list"
    )
    try:
        result = machine.run(f"{source}\n{INSTALL_ONE}", timeout_s=300)
    finally:
        machine.ok("rm /etc/apt/sources.list.d/nobody.list; apt-get purge -qq -y nano 2>&1", user="root")
    assert result.rc == 0, result
    assert "nobody.invalid" in result.err
    assert "going on with what it knows" in result.err


@pytest.mark.parametrize(
    "lock", ["/var/lib/apt/lists/lock", "/var/lib/dpkg/lock-frontend", "/var/cache/apt/archives/lock"]
)
def test_another_program_that_uses_apt_is_waited_for(machine: Machine, lock: str) -> None:
    try:
        result = machine.run(f"set -- {lock}\n{HOLD}\n{INSTALL_ONE}", user="root", timeout_s=300)
    finally:
        machine.ok("apt-get purge -qq -y nano 2>&1", user="root")
    assert result.rc == 0, result
    assert re.search(
        r"(uses apt: perl, process \d+|waiting for perl, process \d+)$", result.out + result.err, re.MULTILINE
    )
