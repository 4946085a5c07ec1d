"""Golden numbers of the ReLU kernels, from an independent library.

neural-tangents 0.6.5 (arXiv 1912.02803) needs an older JAX than this project, so that
its numbers are computed once, in an environment of their own, and kept in
``tests/analysis/kernels/golden_neural_tangents.npz``:

    python -m venv ENVIRONMENT
    ENVIRONMENT/bin/pip install jax==0.5.3 jaxlib==0.5.3 frozendict absl-py
    ENVIRONMENT/bin/pip install --no-deps neural-tangents==0.6.5
    ENVIRONMENT/bin/python benchmarks/neural_tangents_golden.py

Its ``Dense`` layer is W_std / sqrt(fan-in) W x with W of N(0, 1) entries.  W_std =
sqrt(p) in the first layer and 1 in the others gives the networks of
`analysis.kernels.relu_ntk`: weights N(0, 1), 1/width per hidden layer, none on the
input, no bias, every layer trained.
"""

import os
import sys
import types
from importlib import import_module, metadata
from pathlib import Path

import numpy as np

GOLDEN = (
    Path(__file__).resolve().parents[1]
    / "tests/analysis/kernels/golden_neural_tangents.npz"
)
DEPTHS = (1, 2, 3)


def main() -> None:
    """Compute the kernels in float64 and write them with the versions."""
    jax = import_module("jax")
    jax.config.update("jax_enable_x64", True)
    # The experimental part imports TensorFlow, which nothing here needs.
    name = "neural_tangents.experimental"
    sys.modules[name] = types.ModuleType(name)
    stax = import_module("neural_tangents.stax")
    left, right = points()
    arrays = {"left": left, "right": right, "versions": versions()}
    for depth in DEPTHS:
        kernel = network_kernel(stax, depth, left.shape[1])
        for what in ("ntk", "nngp"):
            arrays[f"{what}{depth}"] = np.asarray(kernel(left, right, what))
            arrays[f"{what}{depth}_square"] = np.asarray(kernel(left, None, what))
    partial = GOLDEN.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **arrays)
    os.replace(partial, GOLDEN)
    print(f"wrote {GOLDEN}; {', '.join(arrays['versions'])}")


def points() -> tuple[np.ndarray, np.ndarray]:
    """Return 6 and 5 points, (n, 4): near, opposite, scaled and orthogonal ones too."""
    rng = np.random.default_rng(11)
    left = rng.normal(size=(6, 4))
    right = np.stack(
        [
            rng.normal(size=4),
            3.0 * left[0],
            -0.5 * left[1],
            left[2] + 1e-3 * rng.normal(size=4),
            np.array([left[3, 1], -left[3, 0], left[3, 3], -left[3, 2]]),
        ]
    )
    return left, right


def network_kernel(stax: types.ModuleType, depth: int, inputs: int):  # noqa: ANN201
    """Return the library's kernel function of a network of `depth` hidden layers."""
    layers = [stax.Dense(1, W_std=inputs**0.5, b_std=None)]
    for _ in range(depth):
        layers += [stax.Relu(), stax.Dense(1, W_std=1.0, b_std=None)]
    return stax.serial(*layers)[2]


def versions() -> np.ndarray:
    """Return the versions of what computed the numbers, as ``name version``."""
    names = ("neural-tangents", "jax", "jaxlib", "numpy")
    return np.array([f"{name} {metadata.version(name)}" for name in names])


if __name__ == "__main__":
    main()
