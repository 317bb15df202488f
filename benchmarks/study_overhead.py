"""What ledger, files, checkpoints, records and summaries take of a study's time."""

import argparse
import collections
import contextlib
import dataclasses
import functools
import pathlib
import tempfile
import threading
import time

import jax
import timing
from scene_batches import CONFIG

from fpnlab.cli.progress import ProgressDisplay
from fpnlab.config.load import load_config
from fpnlab.config.trials import counted
from fpnlab.data.load_data import load
from fpnlab.report import write_report
from fpnlab.run import hooks, run
from fpnlab.run.interrupts import Stop
from fpnlab.study import runner
from fpnlab.study.ledger import Ledger
from fpnlab.study.runner import run_study
from fpnlab.train.checkpoint import Checkpoints

LEDGER = ["claim", "claim_pack", "set_pack", "finish", "expect", "rows", "open", "stopping"]
PARTS = {
    "ledger": [(Ledger, name) for name in LEDGER],
    "checkpoints": [(Checkpoints, "save"), (Checkpoints, "restore")],
    "records": [(hooks.LogMetrics, "before_step"), (hooks.LogMetrics, "after_step")],
    "files": [(run, "enter_folder"), (run, "write_result"), (runner, "write_record")],
    "summary": [(runner._Progress, "summarize")],
    "display": [(ProgressDisplay, name) for name in ("start", "begin", "record", "end")],
}


@dataclasses.dataclass(frozen=True)
class Share:
    """What a part of the machinery took."""

    part: str
    seconds: float
    percent: float  # of the study's wall time
    calls: int


class PartTimer:
    """The time in parts of a program, each outermost call counted once, in the main thread."""

    def __init__(self):
        self.seconds = collections.Counter()
        self.calls = collections.Counter()
        self.busy = False

    def timed(self, part, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            if self.busy or threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)
            # Steps run ahead: waiting for them is not what the records cost.
            jax.block_until_ready([a for a in args if not isinstance(a, pathlib.Path)])
            self.busy, begun = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.busy = False
                self.seconds[part] += time.perf_counter() - begun
                self.calls[part] += 1

        return call


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--config", type=pathlib.Path, default=CONFIG)
    parser.add_argument("--out", type=pathlib.Path, help="folder of the study  [default: none]")
    options: argparse.Namespace = parser.parse_args()
    timing.prepare(options)
    experiment, timer = load_config(options.config), PartTimer()
    for part, places in PARTS.items():
        for owner, name in places:
            setattr(owner, name, timer.timed(part, getattr(owner, name)))
    dataset = load(counted(experiment).data)
    with contextlib.ExitStack() as stack:
        folder = options.out or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stop, listener = stack.enter_context(Stop()), stack.enter_context(ProgressDisplay())
        command = f"fpnlab study {options.config}"
        begun = time.perf_counter()
        run_study(
            experiment, dataset, folder, command=command, stop=stop, listener=listener, pack=8
        )
        wall = time.perf_counter() - begun
        timer.timed("report", write_report)(folder)
    rows = [
        Share(part, round(seconds, 2), round(100 * seconds / wall, 2), timer.calls[part])
        for part, seconds in timer.seconds.items()
    ]
    total = sum(row.seconds for row in rows if row.part != "report")
    rows.append(Share("all but the report", round(total, 2), round(100 * total / wall, 2), 0))
    rows.append(Share("study", round(wall, 2), 100.0, 1))
    timing.report("speed_study_overhead", rows, options)


if __name__ == "__main__":
    main()
