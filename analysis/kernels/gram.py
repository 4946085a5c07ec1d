"""The Gram matrix of any kernel, K_ij = k(a_i, b_j), block by block.

A kernel takes (n, p) and (q, p) points and returns (n, q); how much memory it needs
besides is bounded by the size of a block.  Of a square matrix only the blocks on and
above the diagonal are computed, and the others are their mirror images: half of the
work for n far above a block, and exact symmetry.  On several devices each one computes
the rows of its own points.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from configs.errors import InputError, require
from diffusion.denoiser import as_pytree

__all__ = ["Kernel", "check_points", "fill_blocks", "gram", "mean_with_mirror"]

Kernel = Callable[[Array, Array], Array]

_TILE = 128


def gram(
    kernel: Kernel,
    A: ArrayLike,
    B: ArrayLike | None = None,
    *,
    block: int = 2048,
    mesh: Mesh | None = None,
) -> Array:
    """Return the matrix of a kernel, K_ij = k(a_i, b_j).

    Args:
        kernel: Takes (n, *event) and (q, *event) points and returns (n, q); symmetric
            where `B` is None.  Make it once: another function, even an equal one, is
            compiled again.  Arrays that it needs are best leaves of a
            `jax.tree_util.Partial`; those that a function closes over are compiled in.
        A: (n, *event) points.
        B: (q, *event) points, or None for `A` itself: the result is then exactly
            symmetric.
        block: Points of either set handled at once.  Beside its result this needs what
            the kernel needs for block x block entries.
        mesh: Devices among which the rows are divided, such as
            ``make_placement(1, jax.device_count()).mesh`` of `diffusion.training.mesh`;
            None for one device.

    Returns:
        (n, q), in the kernel's dtype.  With a mesh, rows stay on the devices that have
        computed them, as far as their number divides n.

    Raises:
        InputError: If a shape does not fit or `block` is below 1.
    """
    a, b = check_points(A, B, block)
    tree = as_pytree(kernel)
    if mesh is None:
        return fill_blocks(tree, a, b, block)
    return _divided(tree, a, b, block, mesh)


def check_points(
    A: ArrayLike,
    B: ArrayLike | None,
    block: int,
) -> tuple[Array, Array | None]:
    """Return the points as arrays; None for the second set if it is the first.

    Raises:
        InputError: If the shapes of points differ, a set is empty or a block is.
    """
    require(block >= 1, "block", block, "a whole number of points, >= 1")
    a = jnp.asarray(A)
    b = None if B is None or B is A else jnp.asarray(B)
    for name, points in (("A", a), ("B", a if b is None else b)):
        if points.ndim < 2 or not len(points) or points.shape[1:] != a.shape[1:]:
            raise InputError(
                f"{name} has shape {points.shape}; give (n, *event), n >= 1, with the "
                f"event shape of A, {a.shape[1:]}"
            )
    return a, b


@partial(jax.jit, static_argnames="block")
def fill_blocks(
    pairwise: Callable[[Array, Array], Array], a: Array, b: Array | None, block: int
) -> Array:
    """Return what a function of two sets of points gives, computed in blocks.

    Args:
        pairwise: A pytree that takes (n, *event) and (q, *event) and returns
            (n, q, *rest).  Where `b` is None, entry (j, i) must be that of (i, j), with
            the axes of `rest` in reverse order.  On the diagonal it is given one array
            twice.
        a: (n, *event).
        b: (q, *event), or None for `a` itself.
        block: Points of either set at once.

    Returns:
        (n, q, *rest).
    """
    if b is None:
        return _fill_square(pairwise, a, block)
    return _fill_rectangle(pairwise, a, b, block)


@jax.jit
def _symmetric(whole: Array) -> Array:
    return (whole + whole.T) / 2


@jax.jit
def mean_with_mirror(part: Array) -> Array:
    """Return the mean of entries (i, j) and (j, i): exactly symmetric.

    Args:
        part: (n, n, *rest); the axes of `rest` are mirrored too.

    Returns:
        (n, n, *rest).
    """
    return _mirrored(part, True)


def _fill_rectangle(
    pairwise: Callable[[Array, Array], Array], a: Array, b: Array, block: int
) -> Array:
    rows, columns = _starts(len(a), block), _starts(len(b), block)
    height, width = min(block, len(a)), min(block, len(b))
    first, second = (jnp.asarray(g.ravel()) for g in np.meshgrid(rows, columns))

    def fill(index: Array, out: Array) -> Array:
        i, j = first[index], second[index]
        part = pairwise(_some(a, i, height), _some(b, j, width))
        return _placed(out, part, i, j)

    out = _empty(pairwise, a, b, height, width)
    return jax.lax.fori_loop(0, len(first), fill, out)


def _fill_square(
    pairwise: Callable[[Array, Array], Array], a: Array, block: int
) -> Array:
    size = min(block, len(a))
    starts = _starts(len(a), block)
    above = np.triu_indices(len(starts), k=1)
    first, second = (jnp.asarray(starts[index]) for index in above)
    diagonal = jnp.asarray(starts)

    def fill_pair(index: Array, out: Array) -> Array:
        i, j = first[index], second[index]
        part = pairwise(_some(a, i, size), _some(a, j, size))
        return _placed(_placed(out, part, i, j), _mirrored(part, False), j, i)

    def fill_diagonal(index: Array, out: Array) -> Array:
        i = diagonal[index]
        points = _some(a, i, size)
        part = pairwise(points, points)
        return _placed(out, mean_with_mirror(part), i, i)

    out = _empty(pairwise, a, a, size, size)
    if len(starts) > 1:
        out = jax.lax.fori_loop(0, len(first), fill_pair, out)
    # Last: a block that begins early overlaps with one on the diagonal.
    return jax.lax.fori_loop(0, len(starts), fill_diagonal, out)


def _divided(
    kernel: Callable[[Array, Array], Array],
    a: Array,
    b: Array | None,
    block: int,
    mesh: Mesh,
) -> Array:
    """Return the matrix with its rows divided over all devices of a mesh."""
    axes = tuple(mesh.axis_names)
    others = a if b is None else b
    # Repeats of the last point, cut off again: every device gets as many rows.
    spare = -len(a) % mesh.size
    rows = jnp.pad(a, ((0, spare), *((0, 0),) * (a.ndim - 1)), mode="edge")
    rows = jax.device_put(rows, NamedSharding(mesh, P(axes)))
    others = jax.device_put(others, NamedSharding(mesh, P()))
    whole = _fill_divided(kernel, rows, others, block, mesh)
    whole = whole[: len(a)] if spare else whole
    return whole if b is not None else jax.device_put(_symmetric(whole), whole.sharding)


@partial(jax.jit, static_argnames=("block", "mesh"))
def _fill_divided(
    kernel: Callable[[Array, Array], Array],
    a: Array,
    b: Array,
    block: int,
    mesh: Mesh,
) -> Array:
    rows = P(tuple(mesh.axis_names))
    of_one_device = jax.shard_map(
        lambda kernel, a, b: _fill_rectangle(kernel, a, b, block),
        mesh=mesh,
        in_specs=(P(), rows, P()),
        out_specs=rows,
        check_vma=False,  # loops begin with zeros, which vary over no axis
    )
    return of_one_device(kernel, a, b)


def _starts(count: int, block: int) -> np.ndarray:
    """Return where blocks begin; the last one begins early, so that it is whole."""
    size = min(block, count)
    return np.minimum(np.arange(0, count, size), count - size)


def _some(points: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(points, start, size)


def _empty(
    pairwise: Callable[[Array, Array], Array],
    a: Array,
    b: Array,
    height: int,
    width: int,
) -> Array:
    part = jax.eval_shape(pairwise, a[:height], b[:width])
    return jnp.zeros((len(a), len(b), *part.shape[2:]), part.dtype)


def _placed(out: Array, part: Array, i: Array, j: Array) -> Array:
    return jax.lax.dynamic_update_slice(out, part, (i, j, *(0,) * (out.ndim - 2)))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _mirrored(part: Array, average: bool) -> Array:
    """Return entry (j, i) in the place of (i, j), its own axes in reverse order.

    With `average`, the mean of both; the part is then square.
    """
    return jax.lax.platform_dependent(
        part,
        cpu=partial(_by_tiles, average=average),
        default=partial(_by_transposing, average=average),
    )


@_mirrored.defjvp
def _mirrored_jvp(
    average: bool, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    return _mirrored(*primals, average), _by_transposing(*tangents, average)


def _by_transposing(part: Array, average: bool) -> Array:
    mirror = jnp.transpose(part, (1, 0, *range(part.ndim - 1, 1, -1)))
    return (part + mirror) / 2 if average else mirror


def _by_tiles(part: Array, average: bool) -> Array:
    """Do the same in tiles that fit into a processor's cache: in a tenth of the time.

    A loop, for another reason too: what has computed the part is neither computed again
    nor joined to the mean, where its two terms would be rounded differently.
    """
    n, q, *rest = part.shape
    size = min(_TILE, -(-min(n, q) // 2))  # a loop of one pass would be dissolved
    grid = np.meshgrid(_starts(n, size), _starts(q, size))
    first, second = (jnp.asarray(starts.ravel()) for starts in grid)

    def tile(i: Array, j: Array) -> Array:
        corner = (i, j, *(0,) * len(rest))
        return jax.lax.dynamic_slice(part, corner, (size, size, *rest))

    def fill(index: Array, out: Array) -> Array:
        i, j = first[index], second[index]
        mirror = _by_transposing(tile(i, j), False)
        return _placed(out, (tile(j, i) + mirror) / 2 if average else mirror, j, i)

    out = jnp.zeros((q, n, *reversed(rest)), part.dtype)
    return jax.lax.fori_loop(0, len(first), fill, out)
