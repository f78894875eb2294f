"""charts: the figures as pictures, for docs.

How it works      One picture with a bar for each server for each of the main cases, its rate over
                  polyvol's, and one with the server's CPU for each request. Machine, versions and date stand
                  below. SVG with fixed ids and no date of its own: the same figures give the same file.
Errors            AssertionError where matplotlib is missing.
"""

import importlib.util
from pathlib import Path
from typing import Any

from scripts.benchmark.cases import POLYVOL, QEMU, name_of

_CASES = (
    name_of("randread", 4 << 10, 1),
    name_of("randread", 4 << 10, 16),
    name_of("randwrite", 4 << 10, 16),
    name_of("read", 128 << 10, 8),
    name_of("write", 128 << 10, 8),
)


def caption(result: dict[str, Any]) -> str:
    """Two lines: date and command, machine and versions."""
    machine = result["machine"]
    versions = ", ".join(
        f"{name} {machine[name]}" if name == "polyvol" else str(machine[name])
        for name in ("polyvol", "nbdkit", "qemu-nbd", "nbd-server", "fio")
    )
    where = f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}"
    return f"{result['date']}, {result['command']}, {where}\n{versions}"


def series(result: dict[str, Any], figure: str) -> dict[str, dict[str, float]]:
    """The medians of a figure: by case, by server. Of cases that several generators loaded, fio's."""
    found: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        case = row["case"]
        if case["name"] in _CASES and (case["generator"] == "fio"):
            found.setdefault(case["name"], {})[row["server"]] = row["median"][figure]
    return found


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """The pictures, beside the JSON of that name without its suffix; where there is nothing to draw, none."""
    assert importlib.util.find_spec("matplotlib"), "matplotlib is not installed: run scripts/setup bench"
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "polyvol"
    from matplotlib import pyplot

    written = []
    for figure, title, suffix in (
        ("iops", "requests a second, polyvol = 1", "rates"),
        ("server_us", "server CPU for each request, polyvol = 1", "cpu"),
    ):
        found = series(result, figure)
        if not found:
            continue
        picture, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
        servers = sorted({name for row in found.values() for name in row}, key=lambda name: name != POLYVOL)
        width = 0.8 / len(servers)
        for number, server in enumerate(servers):
            places = [at + number * width for at in range(len(found))]
            heights = [
                row.get(server, 0.0) / row[POLYVOL] if row.get(POLYVOL) else 0.0 for row in found.values()
            ]
            axes.bar(places, heights, width, label=server, hatch="//" if server == QEMU else None)
        axes.set_xticks([at + 0.4 - width / 2 for at in range(len(found))], [name for name in found])
        axes.tick_params(axis="x", labelsize=8)
        axes.axhline(1.0, color="black", linewidth=0.5)
        axes.set_title(title)
        axes.legend()
        axes.set_xlabel(caption(result), fontsize=7)
        path = stem.with_name(f"{stem.name}-{suffix}.svg")
        picture.savefig(path, metadata={"Date": None})
        pyplot.close(picture)
        written.append(path)
    return written
