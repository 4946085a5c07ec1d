"""Devices and hosts: who holds what.

One mesh with two axes: ``data``, over which batches are divided, and ``fsdp``, over
which parameters and optimizer state are divided besides (its size is 1 unless they do
not fit).  Batches are divided over both.  Random numbers and the order of the samples
do not know of devices, so one process with one device computes what many hosts compute,
up to the order of sums.
"""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.errors import InputError

__all__ = [
    "Placement",
    "agree",
    "barrier",
    "connect_hosts",
    "host_value",
    "is_main_host",
    "make_placement",
    "together",
]

T = TypeVar("T")

_FSDP_MIN_SIZE = 2**12  # smaller arrays are not worth a message


class Placement(NamedTuple):
    """Where arrays live.

    Attributes:
        mesh: All devices, axes ``data`` and ``fsdp``.
        replicated: A copy on every device.
        batch: The first axis divided over all devices.
        steps: The second axis divided over all devices: batches of several steps.
    """

    mesh: Mesh
    replicated: NamedSharding
    batch: NamedSharding
    steps: NamedSharding

    def put(self, value: Any, sharding: NamedSharding) -> Array:
        """Return a host array, which all hosts hold alike, as one on the devices."""
        array = np.asarray(value)
        return self.from_callback(array.shape, sharding, lambda index: array[index])

    def from_callback(
        self,
        shape: tuple[int, ...],
        sharding: NamedSharding,
        rows: Callable[[Any], np.ndarray],
    ) -> Array:
        """Return an array whose parts are read one by one, only those of this host."""
        return jax.make_array_from_callback(shape, sharding, rows)

    def state_shardings(self, shapes: Any) -> Any:
        """Return how a tree of parameters and optimizer state is divided.

        Each large array is divided along its longest axis that ``fsdp`` divides.
        """
        parts = self.mesh.shape["fsdp"]

        def of(leaf: Any) -> NamedSharding:
            axes: list[str | None] = [None] * len(leaf.shape)
            fitting = [
                (size, axis)
                for axis, size in enumerate(leaf.shape)
                if size % parts == 0
            ]
            if parts > 1 and fitting and math.prod(leaf.shape) >= _FSDP_MIN_SIZE:
                axes[max(fitting)[1]] = "fsdp"
            return NamedSharding(self.mesh, P(*axes))

        return jax.tree.map(of, shapes)

    def local_rows(self, batch_size: int) -> slice:
        """Return the rows of a batch that this host's devices hold."""
        found: Any = self.batch.addressable_devices_indices_map((batch_size,))
        rows = [index[0].indices(batch_size)[:2] for index in found.values()]
        return slice(min(start for start, _ in rows), max(stop for _, stop in rows))

    def put_local(self, rows: np.ndarray, batch_size: int) -> Array:
        """Return a batch of which each host gives the rows of `local_rows`."""
        return jax.make_array_from_process_local_data(
            self.batch, rows, (batch_size, *rows.shape[1:])
        )


def make_placement(fsdp: int, batch_size: int, accumulation: int = 1) -> Placement:
    """Return the placement on all devices of all hosts.

    Args:
        fsdp: Devices over which parameters are divided.
        batch_size: Samples per step, over all devices.
        accumulation: Parts of a batch that are computed one after the other.

    Raises:
        InputError: If the devices do not divide the batch, or fsdp the devices.
    """
    count = jax.device_count()
    if count % fsdp:
        raise InputError(
            f"mesh.fsdp is {fsdp}; it must divide the number of devices, {count}"
        )
    part = batch_size // accumulation
    if part % count:
        raise InputError(
            f"training.batch_size {batch_size} in {accumulation} parts of {part} is "
            f"not divisible by {count} devices; choose a multiple of "
            f"{count * accumulation}"
        )
    mesh = jax.make_mesh(
        (count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
    )
    everywhere = ("data", "fsdp")
    return Placement(
        mesh=mesh,
        replicated=NamedSharding(mesh, P()),
        batch=NamedSharding(mesh, P(everywhere)),
        steps=NamedSharding(mesh, P(None, everywhere)),
    )


def connect_hosts(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    find: bool = False,
) -> None:
    """Join the other processes of a run; alone, do nothing.

    Must be called before any device is used.

    Args:
        coordinator: ``HOST:PORT`` of process 0; None takes what the environment says
            (SLURM, Open MPI, TPU), if it speaks of several processes.
        num_processes: Processes in all.
        process_id: Number of this one, from 0.
        find: Whether there are others for certain, and JAX shall find them: on cloud
            TPUs it asks the machine's metadata, of which the environment says nothing.

    Raises:
        InputError: If only some of the three are given, if they are given with `find`,
            or if no others are found.
    """
    given = (coordinator, num_processes, process_id)
    if find and any(value is not None for value in given):
        raise InputError(
            "--distributed finds the hosts by itself; leave out --coordinator, "
            "--num-processes and --process-id, or --distributed"
        )
    if all(value is None for value in given):
        if find:
            _find_hosts()
        elif _environment_has_hosts():
            jax.distributed.initialize()
        return
    if any(value is None for value in given):
        raise InputError(
            "--coordinator, --num-processes and --process-id go together; "
            f"given were {coordinator}, {num_processes} and {process_id}"
        )
    assert num_processes is not None and process_id is not None
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process-id is {process_id}; it must be from 0 to {num_processes - 1}"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)


def _find_hosts() -> None:
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise InputError(
            f"--distributed: JAX finds no other hosts here ({error}); name them by "
            "--coordinator, --num-processes and --process-id"
        ) from error


def _environment_has_hosts() -> bool:
    counts = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    several = any(int(os.environ.get(name) or 1) > 1 for name in counts)
    # An interactive SLURM shell has tasks, but is not one of them.
    inside = "SLURM_PROCID" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ
    tpu_hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return (several and inside) or len(tpu_hosts) > 1


def is_main_host() -> bool:
    """Return whether this process prints and writes what only one may."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has come here; alone, do nothing."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(flag: bool) -> bool:
    """Return the first process's answer on all of them."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def together(work: Callable[[], T]) -> T:
    """Return what `work` gives; where it fails on one host, it fails on all.

    Otherwise the others would wait for that host for ever.

    Raises:
        InputError: On the hosts where it has not failed, naming one where it has.
        Exception: Whatever `work` raises, on the host where it does.
    """
    if jax.process_count() == 1:
        return work()
    from jax.experimental import multihost_utils

    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    flags = multihost_utils.process_allgather(np.asarray(failure is not None))
    if failure is not None:
        raise failure
    if flags.any():
        raise InputError(
            f"process {int(np.argmax(flags))} refused to go on; see its message"
        )
    return cast(T, result)


def host_value(leaf: Any) -> np.ndarray:
    """Return an array's value on this host, wherever its parts are.

    All processes must call it for the same arrays in the same order.
    """
    if not isinstance(leaf, Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if not leaf.is_fully_replicated:
        mesh = leaf.sharding.mesh  # type: ignore[attr-defined]
        gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
        leaf = gather(leaf)
    return np.asarray(leaf.addressable_data(0))
