"""Runs the study of a claim and keeps its results in ``docs/results``; start it from the root."""

import json
import pathlib
import shutil
import sys
import tomllib

from fpnlab.cli.main import main

RESULTS = pathlib.Path("docs/results")


def publish(name: str) -> None:
    """Runs ``configs/NAME.toml``, writes its report, and copies what is kept of it.

    NAME.csv has a row for each trial and evaluation, NAME.png the metric by the axis, NAME.json the
    verdicts with the hashes of their rules, the command, the environment and the resolved study.
    Options are those of ``fpnlab study``, but for --out. Where the data lie on this machine is not
    kept: ``data.root`` is that of the config.
    """
    config = pathlib.Path("configs") / f"{name}.toml"
    sys.argv[1:] = ["study", str(config), *sys.argv[1:]]
    main(standalone_mode=False)
    folder = pathlib.Path("runs") / name
    study = json.loads((folder / "study.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    kept = {
        "command": study["command"],
        "findings": summary["findings"],
        "verdicts": summary["verdicts"],
        "environment": study["env"],
        "study": study["config"],
    }
    there, root = study["config"]["data"]["root"], tomllib.loads(config.read_text())["data"]["root"]
    text = json.dumps(kept, indent=1).replace(there, root)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    shutil.copy(folder / "table.csv", RESULTS / f"{name}.csv")
    for source, suffix in ((f"{summary['metric']}.png", ""), ("difference.png", "_difference")):
        shutil.copy(folder / "figures" / source, RESULTS / f"{name}{suffix}.png")
