"""test_support_bundle: `polyvol support-bundle` with a polyvold that runs, that does not, and that hangs.

How it works      A real polyvold, with a volume whose blocks, whose hooks and whose environment have words
                  that must not be in the bundle. A hang is a SIGSTOP.
"""

import errno
import json
import os
import signal
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from polyvol.daemon.client.cli import support_bundle
from polyvol.daemon.client.cli.support_parts import LEFT_OUT, Absent, Part, clean, parts, without_secrets
from tests.support.daemon import Daemon
from tests.support.nbd import connect

DATA = b"DATA-OF-USERS" * 300
IN_HOOK = "WORD-OF-A-HOOK"
IN_ENVIRONMENT = "WORD-OF-THE-ENVIRONMENT"
IN_SETTINGS = "WORD-OF-A-SETTING"


@pytest.fixture
def used(make_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """A daemon with an object of each kind, and words that are nobody else's business."""
    monkeypatch.setenv("SOMETHING", IN_ENVIRONMENT)
    daemon = make_daemon(env={"SOMETHING_ELSE": IN_ENVIRONMENT})
    daemon.make_volume("v", size="8M")
    hooks = ["--quiesce", f"/bin/echo {IN_HOOK}", "--thaw", f"/bin/echo {IN_HOOK}"]
    daemon.ok("volume", "set", "v", *hooks)
    with connect(daemon.uri("v")) as host:
        host.pwrite(DATA[:3584], 0)
        daemon.ok("snapshot", "create", "v", "--name", "s")
        host.pwrite(DATA[:3584], 4096)
        host.flush()
    daemon.ok("group", "create", "g", "v")
    daemon.ok("schedule", "add", "v", "--every", "1d", "--keep", "last=2", "--name", "daily", *hooks)
    return daemon


def members(bundle: Path) -> dict[str, bytes]:
    """What is in a bundle, by name; each entry is for its owner alone."""
    found = {}
    with tarfile.open(bundle) as archive:
        for entry in archive:
            assert entry.mode == 0o600
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.split("/", 1)[1]] = file.read()
    return found


@pytest.mark.slow
def test_a_bundle_has_everything_but_data_and_secrets(used: Daemon) -> None:
    bundle = used.directory / "bundle.tar.gz"
    said = used.json("support-bundle", bundle)
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    found = members(bundle)
    assert set(said["parts"]) == set(found) - {"README.txt"}
    for name in ("status", "devices", "volumes", "snapshots", "groups", "schedules", "catalog"):
        assert json.loads(found[f"{name}.json"]), name
    assert json.loads(found["volumes.json"])[0]["hooks"]["quiesce"] == LEFT_OUT
    assert json.loads(found["catalog.json"])["problems"] == []
    assert b"polyvold" in found["process.txt"]
    assert IN_ENVIRONMENT.encode() in Path(f"/proc/{used.pid}/environ").read_bytes()
    assert b"catalog.db" in found["state-directory.txt"]
    assert b"engine" in found["version.txt"]
    assert said["absent"]["check.json"] == "polyvold runs"
    for name in ("debug-processors.json", "debug-dump.json"):  # where polyvold has them
        assert name in found or said["absent"][name] == "this polyvold does not have it"
    for name, text in found.items():
        for word in (b"DATA-OF-USERS", IN_HOOK.encode(), IN_ENVIRONMENT.encode()):
            assert word not in text, name
    readme = found["README.txt"].decode()
    assert "Look through it" in readme
    assert all(name in readme for name in (*said["parts"], *said["absent"]))


@pytest.mark.slow
def test_a_secret_that_a_hook_prints_in_quotes_is_left_out(used: Daemon) -> None:
    hook = used.directory / "hook"
    hook.write_text("""#!/bin/sh\necho 'password="A-SECRET in-words" {"token": "A-SECRET"}' >&2\nexit 1\n""")
    hook.chmod(0o755)
    used.ok("volume", "set", "v", "--quiesce", hook)
    assert "A-SECRET" in used.cli("snapshot", "create", "v", "--name", "hooked").err
    bundle = used.directory / "bundle.tar.gz"
    used.ok("support-bundle", bundle)
    found = members(bundle)
    for name, text in found.items():
        assert b"A-SECRET" not in text, name
        assert b"in-words" not in text, name
        if name.endswith(".json"):
            json.loads(text)
    assert LEFT_OUT in found["snapshots.json"].decode()


@pytest.mark.slow
def test_a_bundle_can_go_to_the_standard_output(used: Daemon) -> None:
    bundle = used.directory / "given.tar.gz"
    said = used.ok_to(bundle, "support-bundle", "-")
    assert {"README.txt", "status.json"} <= set(members(bundle))
    assert "the standard output: " in said
    assert "status.json" in said
    assert not (used.directory / "-").exists()


def test_a_file_that_exists_is_not_replaced(used: Daemon) -> None:
    bundle = used.directory / "bundle.tar.gz"
    bundle.write_bytes(b"of somebody")
    assert "exists already" in used.refused("support-bundle", bundle)
    assert bundle.read_bytes() == b"of somebody"
    assert "polyvold's own files" in used.refused("support-bundle", used.state_dir / "devices" / "bundle")
    assert not list(used.directory.glob("*.partial"))


@pytest.mark.slow
def test_without_polyvold_it_has_the_check(used: Daemon) -> None:
    used.stop()
    bundle = used.directory / "bundle.tar.gz"
    out = used.ok("support-bundle", bundle)
    assert "Look through it" in out
    found = members(bundle)
    assert json.loads(found["check.json"])["problems"] == []
    assert json.loads(found["catalog.json"])["rows"]["volume"] == 1
    assert "status.json" not in found
    assert "polyvold is not running" in out


@pytest.mark.slow
def test_a_damaged_catalog_is_named(used: Daemon) -> None:
    used.stop()
    path = used.state_dir / "catalog.db"
    path.write_bytes(b"\xff" * 4096 + path.read_bytes()[4096:])
    said = used.json("support-bundle", used.directory / "bundle.tar.gz")
    assert "cannot be used" in said["absent"]["catalog.json"]
    assert "state-directory.txt" in said["parts"]
    nowhere = used.directory / "none"
    said = used.json("support-bundle", used.directory / "other.tar.gz", "--state-dir", nowhere)
    assert "not a state directory" in said["absent"]["catalog.json"]


@pytest.mark.slow
def test_a_polyvold_that_does_not_answer_is_waited_for_once(used: Daemon) -> None:
    os.kill(used.pid, signal.SIGSTOP)
    try:
        bundle = used.directory / "bundle.tar.gz"
        result = used.cli("support-bundle", bundle, "--timeout", "1")
        assert (result.rc, result.err) == (0, "")
    finally:
        os.kill(used.pid, signal.SIGCONT)
    found = members(bundle)
    assert "status.json" not in found
    assert result.out.count("it has not answered for 1 s") >= 10
    assert "\n" in found["process.txt"].decode().partition("threads")[2]


@pytest.mark.slow
def test_the_settings_are_there_without_what_is_secret(used: Daemon) -> None:
    used.stop()
    file = used.directory / "polyvold.toml"
    file.write_text("processors = 3\n# a comment\n")
    used.arguments = ("--config", str(file))
    used.start()
    bundle = used.directory / "bundle.tar.gz"
    file.write_text(f'processors = 3\ntls-password = "{IN_SETTINGS}"\n')
    used.ok("support-bundle", bundle)
    text = members(bundle)["config.json"].decode()
    assert json.loads(text)["settings"] == {"processors": 3, "tls-password": LEFT_OUT}


def test_where_the_lock_cannot_be_read_it_is_not_said_that_polyvold_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_text", refused)
    collected = {each.name: each.collect for each in parts(tmp_path, 1)}
    for name in ("process.txt", "config.json", "check.json"):
        with pytest.raises(Absent, match="lock cannot be read: permission denied"):
            collected[name]()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("nbd://user:word@host/x", f"nbd://{LEFT_OUT}@host/x"),
        ("password=word next", f"password={LEFT_OUT} next"),
        ('"token": "word"', f'"token": "{LEFT_OUT}"'),
        ("client_secret: word", f"client_secret: {LEFT_OUT}"),
        ('password="two words" next', f'password="{LEFT_OUT}" next'),
        ("passphrase: 'cut off at the end of", f"passphrase: '{LEFT_OUT}'"),
        ("psql --password word next", f"psql --password {LEFT_OUT} next"),
        ("Authorization: Bearer word", f"Authorization: Bearer {LEFT_OUT}"),
        ("api_key=word&pwd=word", f"api_key={LEFT_OUT}"),
        ("nbd+unix:///v@s?socket=/x", "nbd+unix:///v@s?socket=/x"),
        ("volume tokens is served", "volume tokens is served"),
    ],
)
def test_what_looks_like_a_password_is_left_out(text: str, left: str) -> None:
    assert clean(text) == left


def test_keys_that_are_secret_are_left_out_at_any_depth() -> None:
    given = {"a": [{"thaw": "x", "quiesce": None, "b": {"api-token": 1, "name": "n"}}]}
    assert without_secrets(given) == {
        "a": [{"thaw": LEFT_OUT, "quiesce": None, "b": {"api-token": LEFT_OUT, "name": "n"}}]
    }


def test_a_part_that_fails_or_hangs_is_told_in_a_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def absent() -> str:
        raise Absent("it is not here")

    def broken() -> str:
        raise RuntimeError("a defect")

    def hang() -> str:
        end.wait(60)
        return ""

    try:
        told = {
            each.__name__: support_bundle._collect(Part("p", "", each), 0) for each in (absent, broken, hang)
        }
    finally:
        end.set()
    assert told["absent"] == (None, "it is not here")
    assert "internal error" in (told["broken"][1] or "")
    assert told["hang"] == (None, "it took longer than 0 s")
    monkeypatch.setattr(support_bundle, "PART_BYTES_MAX", 3)
    assert support_bundle._collect(Part("p", "", lambda: "abcdef"), 10) == (b"def", None)
