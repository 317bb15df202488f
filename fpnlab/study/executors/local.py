"""Workers as processes on this machine."""

import os
import pathlib
import subprocess
import sys

from fpnlab.study.executors.remote import last_line

SHARED_ACCELERATOR = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Local:
    """Starts workers that share the CPU cores; with several GPUs, each worker gets one."""

    over_network = False

    def __init__(self, workers: int, logs: pathlib.Path) -> None:
        """Prepares the executor without starting workers.

        Args:
          workers: Number of workers that share the machine.
          logs: Folder for the output of the workers, one file each.
        """
        self.workers, self.logs = workers, logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._gpu: dict[str, str] = {}

    def start(self, commands: dict[str, list[str]]) -> None:
        """Starts workers by owner name."""
        self.logs.mkdir(exist_ok=True)
        for owner, command in commands.items():
            self._start(owner, command)

    def _start(self, owner: str, command: list[str]) -> None:
        parent = ["--parent", str(os.getpid())]
        own = {}
        if len(gpus := visible_gpus()) > 1:
            taken = [self._gpu[other] for other in self._running]
            self._gpu[owner] = min(gpus, key=taken.count)
            own = {"CUDA_VISIBLE_DEVICES": self._gpu[owner]}
        with (self.logs / f"{owner}.log").open("wb") as log:
            # A session of its own keeps Ctrl-C in the terminal from the worker: it would count as a
            # second request to stop, after that of the runner, and end the worker before it saved.
            self._running[owner] = subprocess.Popen(
                [*command, *parent],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=machine_share(self.workers) | os.environ | own,
                start_new_session=True,
            )

    def ended(self) -> dict[str, int]:
        """Returns the exit codes of the workers that have ended since the last call, by owner."""
        codes = {owner: process.poll() for owner, process in self._running.items()}
        found = {owner: code for owner, code in codes.items() if code is not None}
        for owner in found:
            del self._running[owner]
        return found

    def running(self) -> int:
        """Returns the number of workers that `ended` has not yet returned."""
        return len(self._running)

    def kill(self) -> None:
        """Kills the workers that still run."""
        for process in self._running.values():
            process.kill()
            process.wait()

    def last_output(self, owner: str) -> str:
        """Returns the last line that a worker printed, with the path of its log."""
        path = self.logs / f"{owner}.log"
        output = path.read_text(errors="replace") if path.exists() else ""
        return f"{last_line(output)} ({path})"


def cores() -> int:
    """Returns the number of CPU cores available to this process."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Returns the names of the NVIDIA GPUs visible to this process, without initializing them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name]
    there = pathlib.Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(there.glob("*"))))]


def machine_share(workers: int) -> dict[str, str]:
    """Returns environment variables for one of ``workers`` workers that share the machine.

    They limit the threads, since more threads than cores slow each other down, and turn off the
    preallocation of accelerator memory, with which the first worker would leave none to the others.
    """
    return {"PJRT_NPROC": str(max(cores() // workers, 1)), **SHARED_ACCELERATOR}


def worker_command(folder: pathlib.Path, owner: str, pack: int) -> list[str]:
    """Returns the command that starts a worker, the same for all executors."""
    options = ["--owner", owner, "--pack", str(pack)]
    return [sys.executable, "-m", "fpnlab", "worker", str(folder.resolve()), *options]
