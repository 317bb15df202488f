"""Workers as tasks of a Ray cluster, or of a local Ray (``pip install fpnlab[ray]``)."""

import os

from fpnlab.errors import UnavailableError
from fpnlab.study.executors.local import cores
from fpnlab.study.executors.remote import last_line, load_extra, run_worker


class Ray:
    """Starts workers as Ray tasks; each gets a core, and a GPU if the cluster has any."""

    def __init__(self, workers: int, address: str) -> None:
        """Connects to Ray.

        Args:
          workers: Number of tasks.
          address: Address of a cluster whose machines share the study's folder, or ``local``.

        Raises:
          UnavailableError: Ray is not installed, or no cluster answers at the address.
        """
        ray = load_extra("ray", "ray")
        self.workers, self.over_network = workers, address != "local"
        self._ray = ray
        # A local Ray would run one task per core; `num_cpus` sets the number of tasks instead.
        place = {"address": address} if self.over_network else {"num_cpus": workers}
        try:
            ray.init(**place, include_dashboard=False, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            raise UnavailableError(
                f"ray: {error}; give the address of a cluster, or local"
            ) from None
        self._threads = 1 if self.over_network else max(cores() // workers, 1)
        accelerators = 1 if ray.cluster_resources().get("GPU") else 0
        options = ray.remote(num_cpus=1, num_gpus=accelerators, max_retries=0)
        self._task = options(run_worker)
        self._running: dict[str, object] = {}
        self._output: dict[str, str] = {}

    def start(self, commands: dict[str, list[str]]) -> None:
        """Submits workers by owner name; each starts once the cluster has room for it."""
        for owner, command in commands.items():
            self._running[owner] = self._task.remote(command, os.getcwd(), self._threads)

    def ended(self) -> dict[str, int]:
        """Returns the exit codes of the workers that have ended since the last call, by owner."""
        tasks = list(self._running.values())
        ready = self._ray.wait(tasks, num_returns=len(tasks), timeout=0)[0] if tasks else []
        found = {}
        for owner in [owner for owner, task in self._running.items() if task in ready]:
            try:
                code, output = self._ray.get(self._running.pop(owner))
            except self._ray.exceptions.RayError as error:
                code, output = -1, str(error)
            found[owner], self._output[owner] = code, last_line(output)
        return found

    def running(self) -> int:
        """Returns the number of workers that `ended` has not yet returned."""
        return len(self._running)

    def kill(self) -> None:
        """Cancels the tasks that still run, and disconnects."""
        for task in self._running.values():
            self._ray.cancel(task, force=True)
        self._ray.shutdown()

    def last_output(self, owner: str) -> str:
        """Returns the last line that a worker printed."""
        return self._output[owner]
