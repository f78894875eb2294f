"""The API of schedules."""

from polyvol.daemon.api.route import Route
from polyvol.daemon.types.schedules import ScheduleAdd, SchedulePlanView, ScheduleSet, ScheduleView

ROUTES = [
    Route(
        "GET",
        "/v1/schedules",
        "All schedules",
        lambda service, _: service.schedules.list_all(),
        list[ScheduleView],
    ),
    Route(
        "POST",
        "/v1/schedules",
        "Add a schedule; with dry_run, only tell which snapshots it would keep",
        lambda service, call: service.schedules.add(call.body),
        ScheduleView | SchedulePlanView,
        body=ScheduleAdd,
        status=201,
    ),
    Route(
        "GET",
        "/v1/schedules/{schedule}",
        "One schedule, with its snapshots and what keeps them",
        lambda service, call: service.schedules.show(call.path["schedule"]),
        ScheduleView,
    ),
    Route(
        "PATCH",
        "/v1/schedules/{schedule}",
        "Pause a schedule, or resume it",
        lambda service, call: service.schedules.change(call.path["schedule"], call.body),
        ScheduleView,
        body=ScheduleSet,
    ),
    Route(
        "DELETE",
        "/v1/schedules/{schedule}",
        "Remove a schedule; its snapshots stay",
        lambda service, call: service.schedules.remove(call.path["schedule"]),
        ScheduleView,
    ),
]
