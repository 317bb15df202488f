"""Workers as Slurm jobs, submitted by submitit (`pip install fpnlab[slurm]`)."""

import os
import pathlib
import shutil
from typing import Any

from fpnlab.study.executors.remote import Unavailable, last_line, load_extra, run_worker

COMMON = ("timeout_min", "cpus_per_task", "mem_gb", "gpus_per_node", "name")
"""Options that submitit knows for any cluster; others are Slurm's own."""


class Slurm:
    """Starts workers as jobs, whose machines see the study's folder and this installation."""

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
          workers: how many jobs.
          logs: folder for what submitit writes.
          options: ``timeout_min``, ``cpus_per_task``, ``mem_gb``, ``gpus_per_node``, ``name``, or
            what ``sbatch`` calls ``partition``, ``account``, ``qos`` and so on.
          cluster: one of submitit's.

        Raises:
          Unavailable: submitit is not installed, or this machine has no ``sbatch``.
        """
        submitit = load_extra("slurm", "submitit")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise Unavailable("slurm: no sbatch here; start the study where jobs are submitted")
        self.workers = workers
        self._executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        number = lambda text: int(text) if text.isdecimal() else text
        named = {k if k in COMMON else f"slurm_{k}": number(v) for k, v in options.items()}
        self._executor.update_parameters(**{"name": "fpnlab", "timeout_min": 24 * 60} | named)
        self._threads = int(options.get("cpus_per_task", 1))
        self._running: dict[str, Any] = {}
        self._said: dict[str, str] = {}

    def start(self, owner: str, command: list[str]) -> None:
        """Submits a worker."""
        self._running[owner] = self._executor.submit(
            run_worker, command, os.getcwd(), self._threads
        )

    def ended(self) -> dict[str, int]:
        """Returns the workers that have ended since it was last asked, with their exit codes."""
        found = {}
        for owner in [owner for owner, job in self._running.items() if job.done()]:
            job = self._running.pop(owner)
            error = job.exception()
            code, said = (-1, str(error)) if error else job.result()
            found[owner], self._said[owner] = code, last_line(said)
        return found

    def running(self) -> int:
        """Returns how many have not ended, by what `ended` has said."""
        return len(self._running)

    def kill(self) -> None:
        """Cancels those that have not ended."""
        for job in self._running.values():
            job.cancel()

    def last_words(self, owner: str) -> str:
        """Returns the last line that a worker printed, or what became of its job."""
        return self._said[owner]
