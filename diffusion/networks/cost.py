"""What a function costs, counted on its trace: nothing is computed or allocated.

Floating-point operations are those of matrix products and convolutions, two per
multiply-add, which is how hardware is rated; everything else is a few percent of it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

__all__ = ["count_flops", "saved_bytes"]


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the operations of one call.

    Args:
        function: Anything that `jax.make_jaxpr` traces.
        *arguments: Arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Operations of all matrix products and convolutions, those in loops of known
        length counted as often as they run.
    """
    return _flops_of(jax.make_jaxpr(function)(*arguments).jaxpr)


def saved_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the memory that a function's forward pass keeps for its gradient.

    The arguments themselves count where the gradient needs them.
    """
    pullback = jax.eval_shape(lambda *a: jax.vjp(function, *a)[1], *arguments)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))


def _flops_of(jaxpr: core.Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = _aval(eqn.invars[0]).shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * _aval(eqn.outvars[0]).size * inner
        elif name == "conv_general_dilated":
            kernel = _aval(eqn.invars[1]).shape
            out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
            inner = math.prod(kernel) // kernel[out_axis]
            total += 2 * _aval(eqn.outvars[0]).size * inner
        repeats = eqn.params["length"] if name == "scan" else 1
        total += repeats * sum(map(_flops_of, _inner_jaxprs(eqn)))
    return total


def _aval(variable: Any) -> Any:
    return variable.aval


def _inner_jaxprs(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
