"""Time a training step under settings of glibc's allocator.

The settings last as long as a process, so that processes are compared, which take turns
(`turns.py`). The first, glibc's own settings, is the one that ratios refer to.
"""

import argparse
import csv
import ctypes
import pathlib
import statistics

from turns import rounds, serve, started

from fpnlab.cli.allocator import M_MMAP_MAX, M_TRIM_THRESHOLD

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results" / "speed_allocator.csv"
STEPS = (("detector", 2), ("detector", 8), ("detector", 32), ("resnet20", 8), ("resnet20", 128))
M_ARENA_MAX = -8  # From glibc's malloc.h.
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}
SETTINGS = {
    "default": {},
    "keep, any arenas": KEEP,
    **{f"keep, {count} arenas": KEEP | {M_ARENA_MAX: count} for count in (1, 2, 4, 8)},
}


def compare(network: str, batch_size: int, turns: int, names: list[str]) -> list[dict[str, object]]:
    """Returns a row a setting: the median time of a step, and the median ratio to the first."""
    processes = [
        started([__file__, "--serve", network, str(batch_size), "--setting", name])
        for name in names
    ]
    found = rounds(processes, turns)
    rows = []
    for place, name in enumerate(names):
        row: dict[str, object] = {"network": network, "batch_size": batch_size, "setting": name}
        for kind in ("wall", "cpu"):
            times = [one[place][kind] for one in found]
            row[f"{kind}_ms"] = round(statistics.median(times), 1)
            ratios = [one[place][kind] / one[0][kind] for one in found]
            row[f"{kind}_ratio"] = round(statistics.median(ratios), 3)
        row["peak_mib"] = round(max(one[place]["peak_mib"] for one in found))
        rows.append(row)
    return rows


def main() -> None:
    """Prints a row for each network, batch size and setting; with --save also into a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--serve", nargs=2)
    parser.add_argument("--setting", choices=SETTINGS, default="default")
    options = parser.parse_args()
    if options.serve:
        for name, value in SETTINGS[options.setting].items():
            assert ctypes.CDLL(None).mallopt(name, value) == 1
        serve(options.serve[0], int(options.serve[1]))
        return
    rows = []
    for network, batch_size in STEPS:
        rows += compare(network, batch_size, options.turns, options.settings)
        print(*rows[-len(options.settings) :], sep="\n", flush=True)
    if options.save:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
