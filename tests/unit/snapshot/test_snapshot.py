"""test_snapshot: what exports are called and described as, and what is read from that."""

from dataclasses import replace
from uuid import UUID

import pytest

from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.snapshot import described_uuid, export_description, export_name, export_parts
from tests.support.catalogs import snapshot

LIKE_A_UUID = "12345678-9abc-def0-1234-56789abcdef0"
VOLUME = Volume(
    VolumeId(1),
    UUID("00000000-1111-2222-3333-444444444444"),
    "v",
    1 << 20,
    1 << 20,
    "ready",
    "keep-writing",
    next_epoch=Epoch(2),
    next_log=1,
    created_ns=0,
)


@pytest.mark.parametrize("name", ["v", LIKE_A_UUID])
def test_a_description_has_the_uuid_of_what_is_exported_whatever_its_name(name: str) -> None:
    volume, record = replace(VOLUME, name=name), snapshot(1, name, 1)
    assert described_uuid(export_description(volume)) == volume.uuid
    assert described_uuid(export_description(volume, record)) == record.uuid
    assert described_uuid(f"{export_description(volume)}, being restored") == volume.uuid


@pytest.mark.parametrize("description", ["", "a disk", f"volume {LIKE_A_UUID}"])
def test_a_description_without_an_identity_has_none(description: str) -> None:
    assert described_uuid(description) is None


def test_the_parts_of_an_export_make_its_name() -> None:
    for parts in (("v", None), ("v", "s")):
        assert export_parts(export_name(*parts)) == parts
