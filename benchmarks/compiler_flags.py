"""Time a training step with and without the XLA flags that make reductions right.

XLA reads its flags once, so that two processes are compared, which take turns
(`turns.py`). Run it by an interpreter whose jaxlib needs flags (`fpnlab doctor` names them).
"""

import argparse
import csv
import os
import pathlib
import statistics

from turns import rounds, serve, started

from fpnlab.compiler import NEEDED_FLAGS, jaxlib_version

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results" / "speed_compiler_flags.csv"
STEPS = (("resnet20", 32), ("resnet20", 128), ("detector", 8), ("detector", 32))


def compare(network: str, batch_size: int, turns: int) -> dict[str, object]:
    """Returns a row of the table: median times, and medians of the ratios of neighboring turns."""
    needed = " ".join(NEEDED_FLAGS[jaxlib_version()])
    command = [__file__, "--serve", network, str(batch_size)]
    processes = [started([*command, f"--flags={flags}"]) for flags in (needed, "")]
    pairs = rounds(processes, turns)
    row: dict[str, object] = {"jaxlib": jaxlib_version(), "network": network}
    row["batch_size"] = batch_size
    for kind in ("wall", "cpu"):
        for place, name in enumerate(("with", "without")):
            times = statistics.median(pair[place][kind] for pair in pairs)
            row[f"{kind}_ms_{name}"] = round(times, 1)
        ratio = statistics.median(with_[kind] / without[kind] for with_, without in pairs)
        row[f"{kind}_ratio"] = round(ratio, 3)
    return row


def main() -> None:
    """Prints a row for each network and batch size; with --save also into a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--serve", nargs=2)
    parser.add_argument("--flags", default="")
    options = parser.parse_args()
    if options.serve:
        os.environ["XLA_FLAGS"] = options.flags  # The import has set what is needed.
        serve(options.serve[0], int(options.serve[1]))
        return
    if jaxlib_version() not in NEEDED_FLAGS:
        parser.exit(message=f"jaxlib {jaxlib_version()} needs no flags: nothing to compare\n")
    rows = []
    for network, batch_size in STEPS:
        rows.append(compare(network, batch_size, options.turns))
        print(rows[-1], flush=True)
    if options.save:
        before = list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []
        kept = [row for row in before if row["jaxlib"] != jaxlib_version()]
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows([*kept, *rows])


if __name__ == "__main__":
    main()
