"""Data parallelism: the images of a batch lie on all devices, and the result is that of one.

``jit`` computes over whole arrays, wherever their parts lie, and XLA adds the communication. So
a mean over the batch is over all its images, and a group of ``norm_batch`` images, which the norms
cut from the batch by reshape, is the same group on 1 or on 64 devices: in one device it costs no
communication, and across devices that of its moments.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

AXIS = "batch"


def data_mesh(batch_size: int) -> Mesh | None:
    """Returns the devices over which a batch is spread; None where one device has all of it.

    Every device gets equally many images. Of each process's devices so many are used as divide
    its images: a batch of 6 keeps 3 of 4 devices busy.

    Raises:
      ValueError: the batch does not split over the processes.
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


def jit_step(step: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """Returns ``step`` jitted; its first argument, the state, is donated, its results are whole."""
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=whole)


def replicate(mesh: Mesh | None, tree: Tree) -> Tree:
    """Returns ``tree``, which every process has, on each device of the mesh."""
    return jax.device_put(tree) if mesh is None else _placed(mesh, PartitionSpec(), tree)


def shard(mesh: Mesh | None, tree: Tree) -> Tree:
    """Returns ``tree``, which every process has, spread along its leading axes."""
    return tree if mesh is None else _placed(mesh, PartitionSpec(AXIS), tree)


def one_copy(tree: Tree) -> Tree:
    """Returns what each device has of a replicated ``tree``, on one device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def of_first(tree: Tree) -> Tree:
    """Returns what process 0 gives; the others give values of the same shapes.

    All processes must call it, like every function that communicates, equally often.
    """
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def in_any(flag: bool) -> bool:
    """Returns whether ``flag`` is set in any process; all must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def _placed(mesh, spec, tree):
    sharding = NamedSharding(mesh, spec)
    # `device_put` over several processes first compares what each gives.
    place = lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)
    return jax.tree.map(lambda leaf: place(np.asarray(leaf)), tree)
