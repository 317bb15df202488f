"""Workers as processes of this machine."""

import os
import pathlib
import subprocess
import sys

from fpnlab.study.executors.remote import last_line

SHARED_ACCELERATOR = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Local:
    """Starts workers side by side; each has its share of the cores, and one GPU of several."""

    over_network = False

    def __init__(self, workers: int, logs: pathlib.Path) -> None:
        """Makes ready.

        Args:
          workers: how many share the machine.
          logs: folder for what they print, a file each.
        """
        self.workers, self.logs = workers, logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._gpu: dict[str, str] = {}

    def start(self, commands: dict[str, list[str]]) -> None:
        """Starts workers by owner; Ctrl-C does not reach one, so that it is asked to stop once."""
        self.logs.mkdir(exist_ok=True)
        for owner, command in commands.items():
            self._start(owner, command)

    def _start(self, owner, command):
        parent = ["--parent", str(os.getpid())]
        own = {}
        if len(gpus := visible_gpus()) > 1:
            taken = [self._gpu[other] for other in self._running]
            self._gpu[owner] = min(gpus, key=taken.count)
            own = {"CUDA_VISIBLE_DEVICES": self._gpu[owner]}
        with (self.logs / f"{owner}.log").open("wb") as log:
            self._running[owner] = subprocess.Popen(
                [*command, *parent],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=machine_share(self.workers) | os.environ | own,
                start_new_session=True,
            )

    def ended(self) -> dict[str, int]:
        """Returns the workers that have ended since it was last asked, with their exit codes."""
        codes = {owner: process.poll() for owner, process in self._running.items()}
        found = {owner: code for owner, code in codes.items() if code is not None}
        for owner in found:
            del self._running[owner]
        return found

    def running(self) -> int:
        """Returns how many have not ended, by what `ended` has returned."""
        return len(self._running)

    def kill(self) -> None:
        """Ends those that still run, at once."""
        for process in self._running.values():
            process.kill()
            process.wait()

    def last_output(self, owner: str) -> str:
        """Returns the last line that a worker printed, and where the rest is."""
        path = self.logs / f"{owner}.log"
        output = path.read_text(errors="replace") if path.exists() else ""
        return f"{last_line(output)} ({path})"


def cores() -> int:
    """Returns the cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Returns the names of the NVIDIA GPUs that this process may use, without starting them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name]
    there = pathlib.Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(there.glob("*"))))]


def machine_share(workers: int) -> dict[str, str]:
    """Returns the environment of one of so many workers that share the machine.

    Threads that outnumber the cores wait for each other, and a worker that takes most of an
    accelerator's memory leaves the next one none.
    """
    return {"PJRT_NPROC": str(max(cores() // workers, 1)), **SHARED_ACCELERATOR}


def worker_command(folder: pathlib.Path, owner: str, pack: int) -> list[str]:
    """Returns the command that every executor runs."""
    options = ["--owner", owner, "--pack", str(pack)]
    return [sys.executable, "-m", "fpnlab", "worker", str(folder.resolve()), *options]
