"""The API of groups, of their snapshots, and of holds."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.groups import (
    GroupChange,
    GroupCreate,
    GroupDeleted,
    GroupSnapshotCreate,
    GroupSnapshotDeleted,
    GroupSnapshotView,
    GroupView,
    RollbackStart,
    RollbackView,
)
from polyvol.daemon.types.snapshots import HoldChange, SnapshotView

ROUTES = [
    Route("GET", "/v1/groups", "All groups", lambda service, _: service.groups.list_all(), list[GroupView]),
    Route(
        "POST",
        "/v1/groups",
        "Make a group of volumes",
        lambda service, call: service.groups.create(call.body),
        GroupView,
        body=GroupCreate,
        status=201,
    ),
    Route(
        "GET",
        "/v1/groups/{group}",
        "One group",
        lambda service, call: service.groups.show(call.path["group"]),
        GroupView,
    ),
    Route(
        "PATCH",
        "/v1/groups/{group}",
        "Have volumes join a group, and others leave it; its snapshots stay as they are",
        lambda service, call: service.groups.change(call.path["group"], call.body),
        GroupView,
        body=GroupChange,
    ),
    Route(
        "DELETE",
        "/v1/groups/{group}",
        "Delete a group that has no snapshots, with its schedules; its volumes stay",
        lambda service, call: service.groups.delete(call.path["group"]),
        GroupDeleted,
    ),
    Route(
        "GET",
        "/v1/groups/{group}/snapshots",
        "The snapshots of a group",
        lambda service, call: service.groups.snapshots(call.path["group"]),
        list[GroupSnapshotView],
    ),
    Route(
        "POST",
        "/v1/groups/{group}/snapshots",
        "Take one snapshot of all volumes of a group, at one instant",
        lambda service, call: service.groups.take(call.path["group"], call.body),
        GroupSnapshotView,
        body=GroupSnapshotCreate,
        status=201,
    ),
    Route(
        "POST",
        "/v1/groups/{group}/snapshots/{snapshot}/rollback",
        "Have all volumes of a group's snapshot be what it shows",
        lambda service, call: service.rollbacks.roll_back_group(
            call.path["group"], call.path["snapshot"], call.body
        ),
        RollbackView,
        body=RollbackStart,
    ),
    Route(
        "GET",
        "/v1/groups/{group}/snapshots/{snapshot}",
        "One snapshot of a group",
        lambda service, call: service.groups.show_snapshot(call.path["group"], call.path["snapshot"]),
        GroupSnapshotView,
    ),
    Route(
        "DELETE",
        "/v1/groups/{group}/snapshots/{snapshot}",
        "Delete a snapshot of a group as a whole",
        lambda service, call: service.groups.delete_snapshot(call.path["group"], call.path["snapshot"]),
        GroupSnapshotDeleted,
    ),
    Route(
        "POST",
        "/v1/groups/{group}/snapshots/{snapshot}/holds",
        "Hold a snapshot of a group as a whole, or release it",
        lambda service, call: service.groups.hold_snapshot(
            call.path["group"], call.path["snapshot"], call.body
        ),
        GroupSnapshotView,
        body=HoldChange,
        frees=True,
    ),
    Route(
        "POST",
        "/v1/volumes/{volume}/snapshots/{snapshot}/holds",
        "Hold a snapshot, so that nobody deletes it, or release it",
        lambda service, call: service.groups.hold(call.path["volume"], call.path["snapshot"], call.body),
        SnapshotView,
        body=HoldChange,
        frees=True,
    ),
]
