"""The tangent kernel of a network as it is, at the parameters that it has.

With J_i = d f(x_i) / d theta, (d, P) for d outputs and P parameters, the kernel of two
inputs is the (d, d) matrix

    Theta_ij = J_i J_j^T,                       its trace sum_k (J_i J_j^T)_kk.

Three exact ways (arXiv 2206.08720 compares their kin): Jacobians are contracted; or
column by column J_i (J_j^T e), a vector-Jacobian product and a Jacobian-vector product,
which hold no Jacobian; or, for the two-layer ReLU network m^(-1/2) relu(z W^T) a with
W alone trained, matrix products of activation masks,

    Theta_ij = z_i.z_j (1/m) sum_r a_r a_r^T 1{w_r.z_i > 0} 1{w_r.z_j > 0}.

Where d is large the trace is estimated (Hutchinson 1990): for v of random signs,
E (J_i^T v).(J_j^T v) = tr Theta_ij.

A network is a pure ``apply(params, x)``, (B, *event) to (B, *output), that treats
samples apart.  Of one of this project's, at noise level sigma:
``lambda params, x: dataclasses.replace(denoiser, params=params)(x, sigma)``.
Parameters that are not trained go behind `jax.lax.stop_gradient`, or into the function.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from analysis.kernels.gram import check_points, fill_blocks
from configs.errors import InputError, require, require_choice

__all__ = [
    "EstimatedNTK",
    "NTKMethod",
    "ProbeMethod",
    "empirical_ntk",
    "empirical_ntk_vector_product",
    "estimate_traced_ntk",
    "traced_empirical_ntk",
]

Apply = Callable[[Any, Array], Array]
NTKMethod = Literal["jacobian", "vp", "relu_mask"]
ProbeMethod = Literal["gradients", "vjp_jvp"]

_HIGHEST = jax.lax.Precision.HIGHEST
_NOT_TWO_LAYERS = (
    "method 'relu_mask' is for the network m^(-1/2) relu(z W^T) a with params.W (m, p) "
    "and params.a (m, d) alone; {}: choose 'jacobian' or 'vp'"
)


class EstimatedNTK(NamedTuple):
    """A Monte Carlo estimate of the traced kernel.

    Attributes:
        mean: (n, q) estimates of tr Theta_ij, unbiased.
        standard_error: (n, q) standard errors of the mean over the probes.
    """

    mean: Array
    standard_error: Array


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


def estimate_traced_ntk(
    apply: Apply,
    params: Any,
    A: ArrayLike,
    B: ArrayLike | None,
    key: Array,
    *,
    num_probes: int = 16,
    method: ProbeMethod = "gradients",
    block: int = 16,
) -> EstimatedNTK:
    """Return tr Theta_ij estimated with random signs on the outputs.

    All pairs share the probes, so that the estimate is a matrix without negative
    eigenvalues, and errors of entries go together.

    Args:
        apply: See `empirical_ntk`.
        params: Parameters.
        A: (n, *event) inputs.
        B: (q, *event) inputs, or None for `A` itself.
        key: A `jax.random.key`.
        num_probes: At least 2.
        method: ``"gradients"`` holds the gradients J^T v of two blocks, block x P
            numbers each; ``"vjp_jvp"`` holds one gradient, and pushes it forward
            through all inputs of a block: n q passes instead of products of vectors.
        block: Inputs of either set at once.  Gradients are computed again for each
            block of the other set: the larger it is, the fewer.

    Returns:
        Estimates and standard errors, (n, q) each.

    Raises:
        InputError: If a shape does not fit, the method is unknown, or there are fewer
            than two probes.
    """
    require_choice("method", method, get_args(ProbeMethod))
    require(num_probes >= 2, "num_probes", num_probes, "a whole number, >= 2")
    a, b = check_points(A, B, block)
    output = jax.eval_shape(apply, params, a[:1])
    probes = _draw_probes(key, (num_probes, math.prod(output.shape[1:])), output.dtype)
    with_gradients = method == "gradients"
    pairwise = _Probed(params, probes, apply=apply, with_gradients=with_gradients)
    values = fill_blocks(pairwise, a, b, block)
    spread = jnp.std(values, axis=2, ddof=1)
    return EstimatedNTK(jnp.mean(values, axis=2), spread / math.sqrt(num_probes))


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
        return _contract(form, first, second)

    def _jacobians(self, x: Array) -> list[Array]:
        """Return the Jacobians of each parameter array, (n, d, size) each."""
        tree = jax.vmap(
            lambda one: jax.jacrev(lambda p: _output(self.apply, p, one))(self.params)
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
            output, pull = jax.vjp(lambda p: _output(self.apply, p, one), self.params)

            def of_output(k: Array) -> Array:
                basis = jnp.zeros_like(output).at[k].set(1)
                column = push(*pull(basis)).reshape(len(a), -1)
                return column[:, k] if self.traced else column

            columns = jax.lax.map(of_output, jnp.arange(output.size))
            return jnp.sum(columns, axis=0) if self.traced else columns

        values = jax.lax.map(of_input, b)  # (q, n) or (q, d, n, d)
        return values.T if self.traced else jnp.transpose(values, (2, 0, 3, 1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Probed:
    """(J_i^T v).(J_j^T v) for each probe v, (n, q, probes)."""

    params: Any
    probes: Array
    apply: Apply = field(metadata={"static": True})
    with_gradients: bool = field(metadata={"static": True})

    def __call__(self, a: Array, b: Array) -> Array:
        one = self._by_gradients(a, b) if self.with_gradients else self._pushed(a, b)
        return jnp.moveaxis(jax.lax.map(one, self.probes), 0, 2)

    def _by_gradients(self, a: Array, b: Array) -> Callable[[Array], Array]:
        def one(probe: Array) -> Array:
            first = self._gradients(probe, a)
            second = first if b is a else self._gradients(probe, b)
            return _contract("np,qp->nq", first, second)

        return one

    def _pushed(self, a: Array, b: Array) -> Callable[[Array], Array]:
        _, push = jax.linearize(lambda p: self.apply(p, a), self.params)

        def one(probe: Array) -> Array:
            def column(single: Array) -> Array:
                pushed = push(self._gradient(probe, single)).reshape(len(a), -1)
                return jnp.matmul(pushed, probe, precision=_HIGHEST)

            return jax.lax.map(column, b).T

        return one

    def _gradients(self, probe: Array, x: Array) -> list[Array]:
        tree = jax.lax.map(lambda single: self._gradient(probe, single), x)
        return [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(tree)]

    def _gradient(self, probe: Array, single: Array) -> Any:
        """Return J^T v of one input, a tree like the parameters."""
        return jax.grad(lambda p: jnp.vdot(probe, _output(self.apply, p, single)))(
            self.params
        )


def _output(apply: Apply, params: Any, one: Array) -> Array:
    """Return what the network gives for one input, (d,)."""
    return apply(params, one[None]).reshape(-1)


def _contract(form: str, first: list[Array], second: list[Array]) -> Array:
    parts = zip(first, second, strict=True)
    return sum(
        (jnp.einsum(form, a, b, precision=_HIGHEST) for a, b in parts), jnp.zeros(())
    )


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _draw_probes(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """Return random signs, (probes, d); probe i depends on the key and on i alone."""

    def draw(index: Array) -> Array:
        probe_key = jax.random.fold_in(key, index)
        return jax.random.rademacher(probe_key, shape[1:], dtype)

    return jax.vmap(draw)(jnp.arange(shape[0]))
