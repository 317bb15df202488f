"""Workers as a Slurm job array, submitted by submitit (``pip install fpnlab[slurm]``)."""

import itertools
import os
import pathlib
import shutil
import subprocess
import time
from typing import Protocol, runtime_checkable

from fpnlab.errors import Interrupted, UnavailableError
from fpnlab.study.executors.remote import last_line, load_extra, run_worker

COMMON = ("timeout_min", "cpus_per_task", "mem_gb", "gpus_per_node", "name")
"""Options that submitit has for any cluster; all others are passed on to Slurm."""
LOST = -1
"""Exit code of a worker whose job has left no result."""
QUEUE_SECONDS = 10.0
"""Shortest time between two queries of the queue."""


@runtime_checkable
class JobPaths(Protocol):
    """Files of a job."""

    @property
    def result_pickle(self) -> pathlib.Path:
        """The file to which the job writes its result."""


@runtime_checkable
class Job(Protocol):
    """The part of ``submitit.Job`` that this module uses."""

    @property
    def job_id(self) -> str:
        """The job's id in the queue."""

    @property
    def paths(self) -> JobPaths:
        """Files of the job."""

    def done(self) -> bool:
        """Returns whether the job has ended, by the cluster's accounting."""

    def exception(self) -> BaseException | None:
        """Returns the error that ended the job; None if it succeeded."""

    def result(self) -> tuple[int, str]:
        """Returns the value of ``run_worker``."""

    def cancel(self, check: bool = True) -> None:
        """Cancels the job."""


class Slurm:
    """Starts workers as Slurm jobs, on machines that share the study's folder and this install.

    Workers that start together form one job array. When Slurm stops a job by its time limit,
    ``scancel``, preemption or ``scontrol requeue``, the worker saves first. If Slurm requeues the
    job, the same worker resumes later, and does not count as ended.
    """

    over_network = True

    def __init__(
        self,
        workers: int,
        logs: pathlib.Path,
        options: dict[str, str],
        cluster: str = "slurm",
    ) -> None:
        """Prepares the executor without submitting jobs.

        Args:
          workers: Number of jobs, which may all run at once.
          logs: Folder for the files of submitit.
          options: ``timeout_min``, ``cpus_per_task``, ``mem_gb``, ``gpus_per_node``, ``name``, or
            options of ``sbatch`` such as ``partition``, ``account`` or ``qos``.
          cluster: Name of a submitit cluster.

        Raises:
          UnavailableError: Submitit is not installed, or this machine has no ``sbatch``.
        """
        submitit = load_extra("slurm", "submitit")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UnavailableError(
                "slurm: no sbatch on this machine; start the study on a login node"
            )
        self.workers, self._cluster = workers, cluster
        self._executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        number = lambda text: int(text) if text.isdecimal() else text
        named = {k if k in COMMON else f"slurm_{k}": number(v) for k, v in options.items()}
        # Submitit's default signal before the time limit, USR2, would kill the worker before it has
        # saved. TERM, 90 seconds before the limit, requests a stop.
        defaults = {"name": "fpnlab", "timeout_min": 24 * 60, "slurm_array_parallelism": workers}
        defaults |= {"slurm_additional_parameters": {"signal": "TERM@90"}}
        self._executor.update_parameters(**defaults | named)
        self._threads = int(options.get("cpus_per_task", 1))
        self._running: dict[str, Job] = {}
        self._output: dict[str, str] = {}
        self._queue: set[str] = set()
        self._asked = -QUEUE_SECONDS

    def start(self, commands: dict[str, list[str]]) -> None:
        """Submits workers by owner name as one job array."""
        repeat = itertools.repeat
        jobs = self._executor.map_array(
            run_worker, commands.values(), repeat(os.getcwd()), repeat(self._threads)
        )
        self._running |= dict(zip(commands, jobs))
        self._queue |= {job.job_id for job in jobs}

    def ended(self) -> dict[str, int]:
        """Returns the exit codes of the workers that have ended since the last call, by owner."""
        found = {}
        for owner, job in list(self._running.items()):
            queued = self._queued(job)
            code, output = _outcome(job)
            # A requeued job may have left a result of its first attempt, which does not count.
            if queued and code in (LOST, Interrupted.exit_code):
                continue
            del self._running[owner]
            found[owner], self._output[owner] = code, last_line(output)
        return found

    def _queued(self, job: Job) -> bool:
        """Returns whether a job waits, runs or is completing.

        Asks the queue, because many clusters lack the accounting that submitit's ``done`` uses.
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
        """Returns the number of workers that `ended` has not yet returned."""
        return len(self._running)

    def kill(self) -> None:
        """Cancels the jobs that have not ended."""
        for job in self._running.values():
            job.cancel(check=False)

    def last_output(self, owner: str) -> str:
        """Returns the last line that a worker printed, or the error of its job."""
        return self._output[owner]


def _outcome(job: Job) -> tuple[int, str]:
    """Returns the exit code and output of a job's worker; ``LOST`` with a reason without one."""
    if not job.paths.result_pickle.exists():
        return LOST, f"job {job.job_id} has left no result"
    error = job.exception()
    return (LOST, str(error)) if error else job.result()
