"""The verb that changes a volume's settings: its policies for full change logs, its hooks, its log rules.

How it works      Impossible values are refused before anything changes. Then each setting is recorded, and
                  set in the engine if that has it. If one fails, those before it are set back.
Owner and locks   The caller holds the volume's lock.
Durability        When it returns, the change survives power loss.
Errors            BadHooks, BadLogRule and others of log rules, VolumeNotServed (log rules may need log areas,
                  which the engine makes), EngineFailed.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from polyvol.daemon.context import Context
from polyvol.daemon.hooks.run import checked_hooks
from polyvol.daemon.isolation import isolate
from polyvol.daemon.types.volumes import LogLimit, VolumeSet
from polyvol.daemon.volumes.log_areas import LogAreas
from polyvol.mapping.records.volumes import Volume


def change_settings(context: Context, log_areas: LogAreas, volume: Volume, request: VolumeSet) -> None:
    """Change what is given of a volume's settings."""
    hooks = None if request.hooks is None else checked_hooks(request.hooks)
    if request.log_devices is not None:
        context.refuse_not_served(volume, restoring=True)
        log_areas.check_rules([volume], request.log_devices)
    table = context.catalog.hooks
    before = table.of_volume(volume.id)
    with ExitStack() as undo:
        if any(each is not None for each in (request.when_full, request.relocate, request.log_limit)):
            undo.callback(_set_back, context, volume, "policies", lambda: _set_policies(context, volume))
            _set_policies(context, _with_policies(volume, request))
        if request.hooks is not None:
            undo.callback(_set_back, context, volume, "hooks", lambda: table.set_of_volume(volume.id, before))
            table.set_of_volume(volume.id, hooks)
        if request.log_devices is not None:
            log_areas.set_rules(volume, request.log_devices)
        undo.pop_all()


def _set_back(context: Context, volume: Volume, what: str, action: Callable[[], None]) -> None:
    with isolate(context, f"setting back the {what} of volume {volume.name}", volume=volume.name):
        action()


def _with_policies(volume: Volume, request: VolumeSet) -> Volume:
    """A volume with the policies that are given."""
    rate = volume.relocation_rate
    if isinstance(request.relocate, int):
        rate = request.relocate
    elif request.relocate is not None:
        rate = 0 if request.relocate == "off" else None
    limit = volume.log_limit if request.log_limit is None else log_limit_of(request.log_limit)
    when_full = request.when_full or volume.when_full
    return replace(volume, when_full=when_full, relocation_rate=rate, log_limit=limit)


def log_limit_of(given: LogLimit) -> int | None:
    """A limit of log areas as the catalog has it."""
    if isinstance(given, int):
        return given
    return 0 if given == "none" else None


def _set_policies(context: Context, volume: Volume) -> None:
    """Record what a volume does when its change logs are full, how fast blocks are relocated, and up to what
    size its log areas grow. Whether writes wait for room depends on all of these."""
    context.catalog.volumes.set_policies(volume)
    if context.is_served(volume):
        context.ask_when_full(volume)
