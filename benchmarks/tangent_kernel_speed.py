"""Tangent kernels of finite networks: three exact ways, and a U-Net by probes.

By gradients, n images cost n passes forward and back for each probe; by products of
Jacobian and vector, n^2 passes as well.  At n = 64 the second is out of reach of a
processor, so that both are measured on a few images, and the first on all.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis.kernels.empirical_ntk import NTKMethod, empirical_ntk
from analysis.kernels.probed_ntk import ProbeMethod, estimate_traced_ntk
from analysis.kernels.two_layer_network import apply, init
from benchmarks.measure import assert_same, relative_error, scratch_mib, seconds_of
from configs.network_schema import SongUNetConfig
from diffusion.networks import build_network
from diffusion.networks.cost import count_flops
from diffusion.neural import NeuralDenoiser
from diffusion.preconditioning import EDMPreconditioning

_EXACT: tuple[NTKMethod, ...] = ("relu_mask", "jacobian", "vp")
_PROBED: tuple[ProbeMethod, ...] = ("gradients", "vjp_jvp")


def measure_two_layers(tiny: bool) -> dict[str, Any]:
    """Compare contraction, products and activation masks in float64."""
    n, m, d, p = (8, 64, 4, 6) if tiny else (128, 4096, 4, 6)
    with jax.enable_x64(True):
        params = init(jax.random.key(0), m, p, d, dtype=jnp.float64)
        z = jax.random.normal(jax.random.key(1), (n, p), jnp.float64)
        calls = {
            method: partial(empirical_ntk, apply, params, z, method=method)
            for method in _EXACT
        }
        reference = np.asarray(calls["relu_mask"]())
        errors = {
            name: assert_same(call(), reference, 1e-11, name)
            for name, call in calls.items()
        }
        seconds = seconds_of(calls, repeats=3)
        scratch = {name: scratch_mib(call) for name, call in calls.items()}
    return {
        "shape": {"n": n, "m": m, "d": d, "p": p},
        "seconds": seconds,
        "scratch_mib": scratch,
        "relative_difference": errors,
    }


def measure_unet(tiny: bool) -> dict[str, Any]:
    """Trace the kernel of DDPM++ at 32 x 32 x 3 by random signs on its outputs."""
    width, count, few, probes = (16, 4, 2, 2) if tiny else (64, 64, 4, 16)
    config = SongUNetConfig(model_channels=width, num_blocks=1 if tiny else 4)
    network = build_network(config, (32, 32, 3))
    params = network.init(jax.random.key(0))
    # Fresh networks end in zeros; a trained one does not.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten(
        [
            leaf + 0.02 * jax.random.normal(k, leaf.shape, leaf.dtype)
            for leaf, k in zip(leaves, keys, strict=True)
        ]
    )
    x = jax.random.normal(jax.random.key(2), (count, 32, 32, 3))

    def denoise(params: Any, x: Any) -> Any:
        return NeuralDenoiser(params, network, EDMPreconditioning())(x, 1.0)

    figures: dict[str, Any] = {
        "shape": {"n": count, "probes": probes, "width": width},
        "parameters": network.num_parameters(),
        "gflop_of_a_forward_pass": count_flops(denoise, params, x[:1]) / 1e9,
        "few": _two_ways(denoise, params, x[:few]),
    }
    started = time.perf_counter()
    found = estimate_traced_ntk(
        denoise, params, x, None, jax.random.key(3), num_probes=probes, block=count
    )
    mean, error = (np.asarray(v, np.float64) for v in found)
    figures["by_gradients"] = {
        "seconds_with_compilation": time.perf_counter() - started,
        "gib_of_gradients": 4 * count * network.num_parameters() / 2**30,
        "relative_standard_error": float(np.linalg.norm(error) / np.linalg.norm(mean)),
        "relative_standard_error_of_the_diagonal": float(
            np.linalg.norm(np.diag(error)) / np.linalg.norm(np.diag(mean))
        ),
    }
    pairs = (count / few) ** 2 * probes / 2
    figures["seconds_by_products_estimated"] = (
        pairs * figures["few"]["seconds"]["vjp_jvp"]
    )
    return figures


def _two_ways(denoise: Any, params: Any, x: Any) -> dict[str, Any]:
    """Compare both ways on a few images and two probes."""
    calls = {
        method: partial(
            estimate_traced_ntk,
            denoise,
            params,
            x,
            None,
            jax.random.key(3),
            num_probes=2,
            method=method,
            block=len(x),
        )
        for method in _PROBED
    }
    means = {name: np.asarray(call().mean) for name, call in calls.items()}
    error = relative_error(means["vjp_jvp"], means["gradients"])
    assert error < 1e-4, f"vjp+jvp: relative error {error:.2e}"
    return {
        "n": len(x),
        "probes": 2,
        "seconds": seconds_of(calls, repeats=2),
        "scratch_mib": {name: scratch_mib(call) for name, call in calls.items()},
        "relative_difference": error,
    }
