"""Data parallelism: batches sharded over all devices, with the results of a single device.

``jit`` computes on global arrays, however they are sharded, and XLA adds the communication. So
a mean over the batch is over all its images, and a group of ``norm_batch`` images, which the norms
cut from the batch by reshape, is the same group on 1 or on 64 devices. A group within one device
needs no communication; one across devices communicates its moments.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")
P = ParamSpec("P")
R = TypeVar("R")

AXIS = "batch"


def data_mesh(batch_size: int) -> Mesh | None:
    """Returns the mesh of devices that a batch is sharded over; None for a single device.

    Every device gets the same number of images. Each process uses the largest number of its devices
    that divides its images: a batch of 6 uses 3 of 4 devices.

    Raises:
      ValueError: The batch does not split over the processes.
    """
    processes = jax.process_count()
    if batch_size % processes:
        fits = [n for n in range(1, processes) if batch_size % n == 0]
        raise ValueError(
            f"batch_size is {batch_size}, which does not split over {processes} processes; it "
            f"does over {', '.join(map(str, fits))}"
        )
    local = [jax.local_devices(process_index=process) for process in range(processes)]
    images = batch_size // processes
    used = max(n for n in range(1, min(map(len, local)) + 1) if images % n == 0)
    if processes * used == 1:
        return None
    return Mesh(np.array([device for devices in local for device in devices[:used]]), (AXIS,))


def jit_step(step: Callable[P, R], mesh: Mesh | None) -> Callable[P, R]:
    """Returns ``step`` jitted, with a donated first argument (the state) and replicated results."""
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=replicated)


def replicate(mesh: Mesh | None, tree: Tree) -> Tree:
    """Returns ``tree`` replicated on all devices; every process passes the same values."""
    return jax.device_put(tree) if mesh is None else _placed(mesh, PartitionSpec(), tree)


def shard(mesh: Mesh | None, tree: Tree) -> Tree:
    """Returns ``tree`` sharded along its leading axes; every process passes the same values."""
    return tree if mesh is None else _placed(mesh, PartitionSpec(AXIS), tree)


def one_copy(tree: Tree) -> Tree:
    """Returns a replicated ``tree`` on one device of this process, without communication."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def of_first(tree: Tree) -> Tree:
    """Returns the ``tree`` of process 0 on every process.

    This communicates: all processes must call it equally often, with values of the same shapes.
    """
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def in_any(flag: bool) -> bool:
    """Returns whether ``flag`` is true in any process; all processes must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def _placed(mesh: Mesh, spec: PartitionSpec, tree: Tree) -> Tree:
    sharding = NamedSharding(mesh, spec)
    # `device_put` over several processes would first compare the values of all processes.
    place = lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)
    return jax.tree.map(lambda leaf: place(np.asarray(leaf)), tree)
