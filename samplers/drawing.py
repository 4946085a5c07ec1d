"""Blocks of samples: sample i from the seed and i alone, on all devices of a machine.

Noise, class and the solver's own noise of sample i come from ``fold_in(key, i)``.  All
blocks have one size, the last one is computed whole and cut, so sample i is bitwise the
same whatever the number of samples.  A block is divided over the devices, and while one
is written the next is computed.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from numpy.typing import NDArray

from configs.errors import InputError
from samplers.building import Sampler
from samplers.model import Model
from samplers.sample_files import Block
from samplers.sampling import sample
from samplers.solver import Solution
from samplers.start import Start

__all__ = ["Drawing", "draw_blocks", "draw_classes"]

_CLASS_STREAM = 2  # 0 and 1 are those of the noise and of the solver, see `sample`


class Drawing(NamedTuple):
    """What samples are drawn from, and how.

    Attributes:
        model: A network or a closed form.
        sampler: Solver, grid and start.
        seed: Seed of everything random.
        block_size: Samples computed at once, rounded up to a multiple of the devices.
        class_rule: A class's number, "random" or "balanced"; None for a model that is
            told no classes.
    """

    model: Model
    sampler: Sampler
    seed: int
    block_size: int
    class_rule: str | None

    @property
    def nfe(self) -> int:
        """Denoiser calls for each sample."""
        return self.sampler.solver.nfe(len(self.sampler.sigmas))


class _Devices(NamedTuple):
    """The devices of this machine: how a block, and how all else, lies on them."""

    block: NamedSharding
    copied: NamedSharding

    def copy(self, tree: Any) -> Any:
        """Return a tree whose arrays lie on every device; other leaves are as given."""

        def put(leaf: Any) -> Any:
            is_array = isinstance(leaf, Array)
            return jax.device_put(leaf, self.copied) if is_array else leaf

        return jax.tree.map(put, tree)


class _DividedStart(NamedTuple):
    """A start on noise that is divided over the devices."""

    start: Start
    block: NamedSharding

    def __call__(self, noise: Array, sigma: ArrayLike) -> Array:
        """Return x at `sigma`, (B, *event)."""
        x = self.start(jax.device_put(noise, self.block), sigma)
        return jax.device_put(x, self.block)


def draw_blocks(drawing: Drawing, first: int, count: int) -> Iterator[Block]:
    """Draw samples first, ..., count - 1, block by block.

    Args:
        drawing: What they are drawn from.
        first: Number of the first one.
        count: Number after the last one.

    Yields:
        Samples on the host.

    Raises:
        InputError: If a sample is not finite, naming it and the noise level; or if
            several processes sample together.
    """
    devices = _find_devices()
    number = devices.block.mesh.size
    size = -(-drawing.block_size // number) * number
    model, sampler = drawing.model, drawing.sampler
    copied = drawing._replace(
        model=model._replace(denoiser=devices.copy(model.denoiser)),
        sampler=devices.copy(sampler),
    )
    begun = ((i, *_draw(copied, devices, i, size)) for i in range(first, count, size))
    for index, solution, classes in _one_ahead(begun):
        samples = np.asarray(solution.x)[: count - index]
        finite = np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            trace = _draw(copied, devices, index, size, trace=True)[0]
            raise _not_finite(trace, sampler.sigmas, index, row)
        told = None if drawing.class_rule is None else classes[: len(samples)]
        yield Block(index, samples, told)


def draw_classes(
    rule: str, num_classes: int, key: Array, first: int, count: int
) -> NDArray[np.int64]:
    """Return the classes of samples first, ..., first + count - 1.

    Args:
        rule: A class's number, "random" or "balanced" (i modulo their number).
        num_classes: Classes that there are.
        key: A `jax.random.key`; random draws sample i's class from ``fold_in(key, i)``.
        first: Number of the first sample.
        count: Number of samples.

    Raises:
        InputError: If there is no such class.
    """
    indices = np.arange(first, first + count)
    if rule == "balanced":
        return indices % num_classes
    if rule == "random":

        def draw(index: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, index), _CLASS_STREAM)
            return jax.random.randint(own, (), 0, num_classes)

        return np.asarray(jax.vmap(draw)(jnp.asarray(indices)), np.int64)
    if int(rule) >= num_classes:
        raise InputError(
            f"class_label is {rule}, but the model is told {num_classes} classes, 0 to "
            f"{num_classes - 1}"
        )
    return np.full(count, int(rule), np.int64)


def _find_devices() -> _Devices:
    if jax.process_count() > 1:
        raise InputError(
            f"{jax.process_count()} processes sample together here, but generate runs "
            "in one; start it on each machine by itself, with a --seed of its own"
        )
    devices = jax.local_devices()
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )
    return _Devices(NamedSharding(mesh, P("data")), NamedSharding(mesh, P()))


def _draw(
    drawing: Drawing, devices: _Devices, first: int, size: int, *, trace: bool = False
) -> tuple[Solution, NDArray[np.int64]]:
    """Begin to compute one whole block; return it with the samples' classes."""
    model, sampler = drawing.model, drawing.sampler
    key = jax.random.key(drawing.seed)
    classes = np.zeros(size, np.int64)
    if drawing.class_rule is not None:
        rule = drawing.class_rule
        classes = draw_classes(rule, model.num_classes, key, first, size)
    told = jax.device_put(classes.astype(np.int32), devices.block)
    solution = sample(
        model.with_classes(told),
        key,
        (size, *model.event_shape),
        sampler.sigmas,
        solver=sampler.solver,
        start=_DividedStart(sampler.start_of(told), devices.block),
        first_index=first,
        trace=trace,
    )
    return solution, classes


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield what comes, each after the one behind it has been begun."""
    waiting = list(itertools.islice(items, 1))
    for item in items:
        yield waiting.pop()
        waiting.append(item)
    yield from waiting


def _not_finite(
    solution: Solution, sigmas: NDArray[np.float64], first: int, row: int
) -> InputError:
    """Return the error for a sample that is not finite: which, and from where on."""
    trace = solution.trace
    assert trace is not None
    cause = "computed again it is"
    if not np.isfinite(np.asarray(trace.x[0, row])).all():
        cause = f"its start at sigma = {sigmas[0]:.4g} is not, before any network call"
    else:
        for point, sigma in enumerate(sigmas):
            if not np.isfinite(np.asarray(trace.denoised[point, row])).all():
                cause = (
                    f"the network gives NaN or infinity at sigma = {sigma:.4g}, point "
                    f"{point + 1} of {len(sigmas)}"
                )
                break
    return InputError(
        f"sample {first + row} is not finite: {cause}; the checkpoint, the statistics "
        "or the noise grid does not fit"
    )
