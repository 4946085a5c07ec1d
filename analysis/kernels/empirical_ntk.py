"""The tangent kernel of a network as it is, at the parameters that it has.

With J_i = d f(x_i) / d theta, (d, P) for d outputs and P parameters, the kernel of two
inputs is the (d, d) matrix

    Theta_ij = J_i J_j^T,                       its trace sum_k (J_i J_j^T)_kk.

Three exact ways (arXiv 2206.08720 compares their kin): Jacobians are contracted; or
column by column J_i (J_j^T e), a vector-Jacobian product and a Jacobian-vector product,
which hold no Jacobian; or, for the two-layer ReLU network m^(-1/2) relu(z W^T) a with
W alone trained, matrix products of activation masks,

    Theta_ij = z_i.z_j (1/m) sum_r a_r a_r^T 1{w_r.z_i > 0} 1{w_r.z_j > 0}.

Where d is large the trace is estimated: `analysis.kernels.probed_ntk`.

A network is a pure ``apply(params, x)``, (B, *event) to (B, *output), that treats
samples apart.  Of one of this project's, at noise level sigma:
``lambda params, x: dataclasses.replace(denoiser, params=params)(x, sigma)``.
Parameters that are not trained go behind `jax.lax.stop_gradient`, or into the function.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from analysis.kernels.gram import check_points, fill_blocks
from configs.errors import InputError, require_choice

__all__ = [
    "Apply",
    "NTKMethod",
    "contract",
    "empirical_ntk",
    "empirical_ntk_vector_product",
    "flat_output",
    "traced_empirical_ntk",
]

Apply = Callable[[Any, Array], Array]
NTKMethod = Literal["jacobian", "vp", "relu_mask"]

_HIGHEST = jax.lax.Precision.HIGHEST
_NOT_TWO_LAYERS = (
    "method 'relu_mask' is for the network m^(-1/2) relu(z W^T) a with params.W (m, p) "
    "and params.a (m, d) alone; {}: choose 'jacobian' or 'vp'"
)


def empirical_ntk(
    apply: Apply,
    params: Any,
    A: ArrayLike,
    B: ArrayLike | None = None,
    *,
    method: NTKMethod = "jacobian",
    block: int = 16,
) -> Array:
    """Return the kernel between inputs, Theta_ij = J_i J_j^T.

    Args:
        apply: Pure function ``apply(params, x)``, (B, *event) to (B, *output).  It is
            compiled once per function: make it once.
        params: Its parameters, a pytree of floats; for ``"relu_mask"`` with fields
            `W`, (m, p), and `a`, (m, d).
        A: (n, *event) inputs.
        B: (q, *event) inputs, or None for `A` itself, at half the cost.
        method: ``"jacobian"`` holds two blocks of Jacobians, block x d x P numbers
            each; ``"vp"`` holds a few times P numbers instead and calls the network
            d times as often as there are pairs; ``"relu_mask"``: see this module.
        block: Inputs of either set at once.

    Returns:
        (n, q, d, d), d = prod(output).

    Raises:
        InputError: If a shape does not fit, the method is unknown, or it is
            ``"relu_mask"`` and the network is another.
    """
    return _exact(apply, params, A, B, method, block, traced=False)


def traced_empirical_ntk(
    apply: Apply,
    params: Any,
    A: ArrayLike,
    B: ArrayLike | None = None,
    *,
    method: NTKMethod = "jacobian",
    block: int = 16,
) -> Array:
    """Return the sum over outputs of the kernel, tr Theta_ij.

    Divided by the number of outputs it is what stands beside a closed-form kernel.

    Args:
        apply: See `empirical_ntk`; so are the others.
        params: Parameters.
        A: (n, *event) inputs.
        B: (q, *event) inputs, or None for `A` itself.
        method: As there; the blocks of outputs are never held.
        block: Inputs of either set at once.

    Returns:
        (n, q).

    Raises:
        InputError: As `empirical_ntk` does.
    """
    return _exact(apply, params, A, B, method, block, traced=True)


@partial(jax.jit, static_argnames="apply")
def empirical_ntk_vector_product(
    apply: Apply,
    params: Any,
    A: Array,
    B: Array,
    v: Array,
) -> Array:
    """Return sum_j Theta_ij v_j, without the kernel: J_A (J_B^T v).

    Args:
        apply: See `empirical_ntk`.
        params: Parameters.
        A: (n, *event) inputs.
        B: (q, *event) inputs.
        v: (q, d) vectors, one per input of `B`.

    Returns:
        (n, d).
    """
    outputs, pull = jax.vjp(lambda p: apply(p, B), params)
    (tangent,) = pull(v.reshape(outputs.shape).astype(outputs.dtype))
    _, pushed = jax.jvp(lambda p: apply(p, A), (params,), (tangent,))
    return pushed.reshape(len(pushed), -1)


def _exact(
    apply: Apply,
    params: Any,
    a: ArrayLike,
    b: ArrayLike | None,
    method: NTKMethod,
    block: int,
    *,
    traced: bool,
) -> Array:
    require_choice("method", method, get_args(NTKMethod))
    a, b = check_points(a, b, block)
    if method == "relu_mask":
        _check_two_layers(apply, params, a)
        pairwise = _Masks(params.W, params.a, traced=traced)
    elif method == "vp":
        pairwise = _Products(params, apply=apply, traced=traced)
    else:
        pairwise = _Jacobians(params, apply=apply, traced=traced)
    return fill_blocks(pairwise, a, b, block)


def _check_two_layers(apply: Apply, params: Any, a: Array) -> None:
    """Refuse a network that is not the two-layer one; a traced one passes unseen."""
    shapes = [np.shape(getattr(params, name, ())) for name in ("W", "a")]
    if any(len(shape) != 2 for shape in shapes):
        given = f"params is a {type(params).__name__} without them"
        raise InputError(_NOT_TWO_LAYERS.format(given))
    if a.ndim != 2 or shapes[0] != (shapes[1][0], a.shape[1]):
        given = f"W is {shapes[0]}, a {shapes[1]} and the inputs {a.shape}"
        raise InputError(_NOT_TWO_LAYERS.format(given))
    given, expected = apply(params, a[:1]), _two_layers(params.W, params.a, a[:1])
    if isinstance(given, Tracer):
        return
    scale = float(jnp.max(jnp.abs(expected))) + 1e-3
    if given.shape != expected.shape or not np.allclose(
        np.asarray(given), np.asarray(expected), rtol=0, atol=1e-3 * scale
    ):
        raise InputError(_NOT_TWO_LAYERS.format("apply computes something else"))


def _two_layers(weights: Array, signs: Array, z: Array) -> Array:
    hidden = jax.nn.relu(z @ weights.T)
    return hidden @ signs / math.sqrt(len(weights))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Masks:
    """Theta of the two-layer network: weights W (m, p), output weights a (m, d)."""

    weights: Array
    signs: Array
    traced: bool = field(metadata={"static": True})

    def __call__(self, a: Array, b: Array) -> Array:
        on_a, on_b = (self._active(z) for z in (a, b))
        inner = jnp.matmul(a, b.T, precision=_HIGHEST) / len(self.weights)
        if self.traced:
            power = jnp.sum(self.signs**2, axis=1)
            return inner * jnp.matmul(on_a * power, on_b.T, precision=_HIGHEST)

        def row(sign: Array) -> Array:
            both = (on_a * sign)[:, None, :] * self.signs.T[None]  # (n, d, m)
            return jnp.einsum("nkr,qr->nqk", both, on_b, precision=_HIGHEST)

        blocks = jax.lax.map(row, self.signs.T)  # (d, n, q, d)
        return inner[:, :, None, None] * jnp.moveaxis(blocks, 0, 2)

    def _active(self, z: Array) -> Array:
        return (jnp.matmul(z, self.weights.T, precision=_HIGHEST) > 0).astype(z.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Jacobians:
    """Theta by contraction of Jacobians, one parameter array after the other."""

    params: Any
    apply: Apply = field(metadata={"static": True})
    traced: bool = field(metadata={"static": True})

    def __call__(self, a: Array, b: Array) -> Array:
        first = self._jacobians(a)
        second = first if b is a else self._jacobians(b)
        form = "nkp,qkp->nq" if self.traced else "nkp,qlp->nqkl"
        return contract(form, first, second)

    def _jacobians(self, x: Array) -> list[Array]:
        """Return the Jacobians of each parameter array, (n, d, size) each."""
        tree = jax.vmap(
            lambda one: jax.jacrev(lambda p: flat_output(self.apply, p, one))(
                self.params
            )
        )(x)
        return [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(tree)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Products:
    """Theta column by column, J_A (J_j^T e_k), for one input j and output k."""

    params: Any
    apply: Apply = field(metadata={"static": True})
    traced: bool = field(metadata={"static": True})

    def __call__(self, a: Array, b: Array) -> Array:
        _, push = jax.linearize(lambda p: self.apply(p, a), self.params)

        def of_input(one: Array) -> Array:
            output, pull = jax.vjp(
                lambda p: flat_output(self.apply, p, one), self.params
            )

            def of_output(k: Array) -> Array:
                basis = jnp.zeros_like(output).at[k].set(1)
                column = push(*pull(basis)).reshape(len(a), -1)
                return column[:, k] if self.traced else column

            columns = jax.lax.map(of_output, jnp.arange(output.size))
            return jnp.sum(columns, axis=0) if self.traced else columns

        values = jax.lax.map(of_input, b)  # (q, n) or (q, d, n, d)
        return values.T if self.traced else jnp.transpose(values, (2, 0, 3, 1))


def flat_output(apply: Apply, params: Any, one: Array) -> Array:
    """Return what a network gives for one input, (d,).

    Args:
        apply: See `empirical_ntk`.
        params: Parameters.
        one: (*event), one input.
    """
    return apply(params, one[None]).reshape(-1)


def contract(form: str, first: list[Array], second: list[Array]) -> Array:
    """Return an einsum of two lists of arrays, summed over the list.

    Args:
        form: Of `jnp.einsum`, for one array of each list.
        first: Derivatives for each array of parameters, the parameters flat and last.
        second: Likewise.
    """
    parts = zip(first, second, strict=True)
    return sum(
        (jnp.einsum(form, a, b, precision=_HIGHEST) for a, b in parts), jnp.zeros(())
    )
