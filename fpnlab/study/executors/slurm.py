"""Workers as a Slurm job array, submitted by submitit (`pip install fpnlab[slurm]`)."""

import itertools
import os
import pathlib
import shutil
import subprocess
import time
from typing import Any

from fpnlab.errors import Interrupted, UnavailableError
from fpnlab.study.executors.remote import last_line, load_extra, run_worker

COMMON = ("timeout_min", "cpus_per_task", "mem_gb", "gpus_per_node", "name")
"""Options that submitit knows for any cluster; others are Slurm's own."""
LOST = -1
"""Stands for the exit code of a worker whose job has none."""
QUEUE_SECONDS = 10.0
"""Time between two queries of the queue, at least."""


class Slurm:
    """Starts workers as jobs, whose machines see the study's folder and this installation.

    Those that start together are the tasks of one job array. A job that Slurm stops, by its time
    limit, `scancel`, preemption or `scontrol requeue`, has its worker save; where Slurm has queued
    it again, the same worker goes on later, and has not ended.
    """

    over_network = True

    def __init__(
        self,
        workers: int,
        logs: pathlib.Path,
        options: dict[str, str],
        cluster: str = "slurm",
    ) -> None:
        """Makes ready.

        Args:
          workers: how many jobs, all of which may run at once.
          logs: folder for what submitit writes.
          options: ``timeout_min``, ``cpus_per_task``, ``mem_gb``, ``gpus_per_node``, ``name``, or
            what ``sbatch`` calls ``partition``, ``account``, ``qos`` and so on.
          cluster: one of submitit's.

        Raises:
          UnavailableError: submitit is not installed, or this machine has no ``sbatch``.
        """
        submitit = load_extra("slurm", "submitit")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UnavailableError(
                "slurm: no sbatch here; start the study where jobs are submitted"
            )
        self.workers, self._cluster = workers, cluster
        self._executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        number = lambda text: int(text) if text.isdecimal() else text
        named = {k if k in COMMON else f"slurm_{k}": number(v) for k, v in options.items()}
        # Submitit's own signal before the time limit would end the worker before it has saved.
        defaults = {"name": "fpnlab", "timeout_min": 24 * 60, "slurm_array_parallelism": workers}
        defaults |= {"slurm_additional_parameters": {"signal": "TERM@90"}}
        self._executor.update_parameters(**defaults | named)
        self._threads = int(options.get("cpus_per_task", 1))
        self._running: dict[str, Any] = {}
        self._output: dict[str, str] = {}
        self._queue: set[str] = set()
        self._asked = -QUEUE_SECONDS

    def start(self, commands: dict[str, list[str]]) -> None:
        """Submits workers by owner, several as one job array."""
        repeat = itertools.repeat
        jobs = self._executor.map_array(
            run_worker, commands.values(), repeat(os.getcwd()), repeat(self._threads)
        )
        self._running |= dict(zip(commands, jobs))
        self._queue |= {job.job_id for job in jobs}

    def ended(self) -> dict[str, int]:
        """Returns the workers that have ended since it was last asked, with their exit codes."""
        found = {}
        for owner, job in list(self._running.items()):
            queued = self._queued(job)
            code, output = _outcome(job)
            # What a job left behind before it was queued again is no result.
            if queued and code in (LOST, Interrupted.exit_code):
                continue
            del self._running[owner]
            found[owner], self._output[owner] = code, last_line(output)
        return found

    def _queued(self, job):
        """Returns whether a job waits, runs or is about to end.

        Slurm's accounting, which submitit asks, is absent on many a cluster.
        """
        if self._cluster != "slurm":
            return not job.done()
        if time.monotonic() >= self._asked + QUEUE_SECONDS:
            command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
            asked = subprocess.run(command, capture_output=True, text=True, check=False)
            if asked.returncode == 0:
                self._queue = set(asked.stdout.split())
            self._asked = time.monotonic()
        return job.job_id in self._queue

    def running(self) -> int:
        """Returns how many have not ended, by what `ended` has returned."""
        return len(self._running)

    def kill(self) -> None:
        """Cancels those that have not ended."""
        for job in self._running.values():
            job.cancel(check=False)

    def last_output(self, owner: str) -> str:
        """Returns the last line that a worker printed, or what became of its job."""
        return self._output[owner]


def _outcome(job):
    """Returns the exit code of a job's worker and its output, as far as there is a result."""
    if not job.paths.result_pickle.exists():
        return LOST, f"job {job.job_id} has left no result"
    error = job.exception()
    return (LOST, str(error)) if error else job.result()
