"""Log growth: gives a volume more log areas without being asked, of free room that its log rules allow, up to
its limit.

How it works      A step is made at once when writes wait for free slots, before any snapshot is dropped for
                  them, and ahead of that when what a log rule allows is almost full and relocation cannot
                  give enough back. It goes to a device that has areas which these writes may use already, so
                  log rules stay as they are. Where all of these lie in files that polyvold made, and any area
                  may be used, one more file is made, if the file system keeps FILES_LEFT bytes.
Invariants        GA1 no step exceeds the limit (GL1); GA2 no area is added that none of the writes could use.
Owner and locks   The caller of `grow` holds the volume's `room`. The rest waits for nothing.
Errors            A step that fails is an event, and gives nothing.
"""

import time
from collections.abc import Collection, Iterable

from polyvol.daemon.context import Context
from polyvol.daemon.fill_level import LEVELS
from polyvol.daemon.state.reserve import free_bytes
from polyvol.daemon.volumes.advice import Room
from polyvol.daemon.volumes.log_areas import LogAreas, inventory
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.extent import total
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.plans.log_growth import allowed_areas, room_on, step_size, takes_any
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import format_size

FILES_LEFT = 512 << 20
"""What a file for log areas leaves free of the file system that also has the state directory, bytes."""
AGAIN_S = 10.0
"""For so long after a step that was not possible, writes that were refused do not wait again for growth."""
VAIN_S = 60.0
"""How long a step that was not possible is not tried again ahead of need, while its limits stay: an error may
have passed."""
_Limits = tuple[int, int, bool, int, tuple[LogRule, ...]]
"""The limit, the free room, whether a file may be made, how many areas there are, the rules."""
_LOW, _CRITICAL = LEVELS[1][1], LEVELS[2][1]


class LogGrowth:
    """The growth of log areas."""

    def __init__(self, context: Context, log_areas: LogAreas) -> None:
        self._context = context
        self._log_areas = log_areas
        self._vain: dict[VolumeId, dict[frozenset[int], tuple[_Limits, float]]] = {}
        """For areas that are allowed together, where a step was not possible with these limits, and when."""
        self._failed_s: dict[VolumeId, float] = {}
        """When the last step was not possible."""

    def grow(self, volume: Volume, areas: Collection[int]) -> int:
        """Make a step for writes that may use the areas of these numbers: how many bytes; 0: none can be
        made."""
        context, name = self._context, volume.name
        there = context.catalog.log_areas.of(volume.id)
        tried = self._limits(volume, there)
        mine = [area for area in there if area.number in areas]
        file = self._may_make_file(volume, there, mine)
        try:
            devices = list(dict.fromkeys(area.device for area in mine))
            added = self._log_areas.grow(volume, devices, file=file) if volume.log_bound else []
        except (PolyvolError, context.engine_error) as error:
            text = f"the log areas of volume {name} could not grow: {error}"
            context.events.add_once("warning", text, volume=name)
            added = []
        if not added:
            self._note_vain(volume, there, areas, tried)
            return 0
        grown = sum(total(area.extents) for area in added)
        now = sum(total(area.extents) for area in there) + grown
        device = context.device_names().get(added[0].device, "?")
        text = (
            f"the log areas of volume {name} grew by {format_size(grown)} on device {device} to"
            f" {format_size(now)}, of at most {format_size(volume.log_bound)}; an area cannot be removed"
        )
        context.events.add("info", text, volume=name)
        return grown

    def _note_vain(
        self, volume: Volume, there: list[LogArea], areas: Collection[int], tried: _Limits
    ) -> None:
        vain = self._vain.setdefault(volume.id, {})
        for group in allowed_areas(self._rules(volume), there):
            if set(group).issubset(areas):
                vain[frozenset(group)] = (tried, time.monotonic())
        self._failed_s[volume.id] = time.monotonic()

    def may_grow(self, volume: Volume) -> bool:
        """Whether a step may be possible now for writes that were refused, although the last one was not.
        Says so again after AGAIN_S."""
        failed_s = self._failed_s.get(volume.id)
        if failed_s is not None and time.monotonic() - failed_s < AGAIN_S:
            return False
        there = self._context.catalog.log_areas.of(volume.id)
        groups = allowed_areas(self._rules(volume), there)
        return any(self._is_open(volume, there, group) for group in groups)

    def _is_open(self, volume: Volume, there: list[LogArea], group: list[int]) -> bool:
        """Whether a step may be possible for writes that may use these areas."""
        vain, at_s = self._vain.get(volume.id, {}).get(frozenset(group), (None, 0.0))
        is_vain = vain == self._limits(volume, there) and time.monotonic() - at_s < VAIN_S
        return not is_vain and self.room(volume, group).left(volume) > 0

    def keep_only(self, volumes: set[VolumeId]) -> None:
        """Forget all other volumes."""
        for known in (self._vain, self._failed_s):
            for gone in known.keys() - volumes:
                known.pop(gone, None)

    def room(self, volume: Volume, areas: Collection[int] | None = None) -> Room:
        """The room for more areas, for writes that may use the areas of these numbers (None: any of its
        rules)."""
        there = self._context.catalog.log_areas.of(volume.id)
        mine = [area for area in there if areas is None or area.number in areas]
        size = sum(total(area.extents) for area in there)
        free = sum(room_on([area.device for area in mine], inventory(self._context)).values())
        if free == 0 and self._may_make_file(volume, there, mine):
            free = max(0, self._file_room())
        return Room(size, free)

    def almost_full(self, volume: Volume) -> list[list[int]]:
        """The numbers of the areas that a log rule in force allows, for each rule for which these are almost
        full, relocation cannot give enough of them back, and a step may be possible. None until it was
        counted what relocation can give back. Engine errors."""
        counted = self._context.uses.get(volume.id)
        if counted is None and volume.is_relocated:
            return []
        stats = self._context.engine.volume_stats(volume.id)
        use = {log["number"]: (log["used_bytes"], log["size_bytes"]) for log in stats["logs"]}
        if all(used < _CRITICAL * size for used, size in use.values()):
            return []
        there = self._context.catalog.log_areas.of(volume.id)
        back = counted.comes_back if counted is not None and volume.is_relocated else 0
        found = []
        for group in allowed_areas(self._rules(volume), there):
            if not use.keys() >= set(group):
                continue  # an area that the engine does not have yet
            used = sum(use[number][0] for number in group)
            size = sum(use[number][1] for number in group)
            if (
                used >= _CRITICAL * size
                and used - back >= _LOW * size
                and self._is_open(volume, there, group)
            ):
                found.append(group)
        return found

    def _rules(self, volume: Volume) -> tuple[LogRule, ...]:
        """The log rules in force."""
        newest = self._context.catalog.snapshots.with_kept(volume.id)[-1:]
        own = [each.log_rules for each in newest if each.log_rules]
        return own[0] if own else self._context.catalog.log_areas.rules(volume.id)

    def _may_make_file(self, volume: Volume, there: list[LogArea], mine: list[LogArea]) -> bool:
        """Whether a file may be made for writes that may use the areas `mine` of what is there (GA2)."""
        if not mine or len(mine) < len(there) or not takes_any(self._rules(volume)):
            return False
        made = {each.id for each in self._context.catalog.devices.all() if each.made_for is not None}
        size = step_size(sum(total(area.extents) for area in there), volume.log_bound)
        return all(area.device in made for area in mine) and 0 < size <= self._file_room()

    def _file_room(self) -> int:
        return free_bytes(self._context.state_dir / "devices") - FILES_LEFT

    def _limits(self, volume: Volume, there: Iterable[LogArea]) -> _Limits:
        """What a step depends on: while this stays, one that was not possible stays impossible."""
        areas = list(there)
        free = sum(room_on([area.device for area in areas], inventory(self._context)).values())
        file = self._may_make_file(volume, areas, areas)
        return volume.log_bound, free, file, len(areas), self._rules(volume)
