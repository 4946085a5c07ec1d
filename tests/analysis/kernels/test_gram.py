"""Gram matrices in blocks, on one device and on four."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis.kernels.gram import fill_blocks, gram, mean_with_mirror
from analysis.kernels.relu_ntk import relu_ntk
from configs.errors import InputError
from diffusion.denoiser import as_pytree

ROOT = Path(__file__).resolve().parents[3]
ON_FOUR_DEVICES = """
import jax, numpy as np
from analysis.kernels.gram import gram
from analysis.kernels.relu_ntk import relu_ntk
from diffusion.training.mesh import make_placement

jax.config.update("jax_enable_x64", True)
mesh = make_placement(2, jax.device_count()).mesh
assert mesh.size == 4
rng = np.random.default_rng(0)
a, b = rng.normal(size=(24, 40)), rng.normal(size=(10, 40))
square = gram(relu_ntk, a, block=4, mesh=mesh)
np.testing.assert_allclose(square, relu_ntk(a), rtol=1e-12, atol=1e-12)
assert (square == square.T).all()
shapes = {part.data.shape for part in square.addressable_shards}
assert len(square.sharding.device_set) == 4 and shapes == {(6, 24)}, shapes
# Four devices do not divide 21 points.
wide = gram(relu_ntk, a[:21], b, block=4, mesh=mesh)
np.testing.assert_allclose(wide, relu_ntk(a[:21], b), rtol=1e-12, atol=1e-12)
print("equal")
"""


def inner_cubed(a, b):
    return (a @ b.T) ** 3


@pytest.mark.parametrize("block", [1, 7, 16, 30, 100])
def test_blocks_of_any_size_give_the_same_matrix(block):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(11, 5))
    with jax.enable_x64(True):
        square, wide = (
            gram(inner_cubed, a, block=block),
            gram(inner_cubed, a, b, block=block),
        )
    np.testing.assert_allclose(square, (a @ a.T) ** 3, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(wide, (a @ b.T) ** 3, rtol=1e-12, atol=1e-12)
    assert (np.asarray(square) == np.asarray(square).T).all()


def test_large_blocks_are_mirrored_and_differentiated():
    rng = np.random.default_rng(5)
    a, weights = rng.normal(size=(300, 3)), rng.normal(size=(300, 300))

    def total(a):
        matrix = gram(inner_cubed, a, block=170)
        return jnp.vdot(matrix, weights), matrix

    with jax.enable_x64(True):
        slope, matrix = jax.grad(total, has_aux=True)(jnp.asarray(a))
    np.testing.assert_allclose(matrix, (a @ a.T) ** 3, rtol=1e-12, atol=1e-12)
    assert (np.asarray(matrix) == np.asarray(matrix).T).all()
    expected = 3 * ((weights + weights.T) * (a @ a.T) ** 2) @ a
    np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 5, 2, 2), (300, 300)])
def test_mean_with_the_mirror_image_is_symmetric(shape):
    part = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    mirror = part.transpose(1, 0, *range(len(shape) - 1, 1, -1))
    np.testing.assert_array_equal(mean_with_mirror(part), (part + mirror) / 2)


def test_points_may_be_images_and_kernels_may_hold_arrays():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(9, 2, 3, 1)).astype(np.float32)

    def weighted(weights, a, b):
        return (a.reshape(len(a), -1) * weights) @ b.reshape(len(b), -1).T

    weights = rng.uniform(size=6).astype(np.float32)
    kernel = jax.tree_util.Partial(weighted, jnp.asarray(weights))
    rows = images.reshape(9, 6)
    np.testing.assert_allclose(
        gram(kernel, images, block=4), (rows * weights) @ rows.T, rtol=1e-5, atol=1e-5
    )


def test_relu_gram_has_the_exact_diagonal_in_single_precision():
    x = np.random.default_rng(2).normal(size=(50, 40)).astype(np.float32)
    matrix = np.asarray(gram(relu_ntk, x, block=16))
    exact = np.sum(x.astype(np.float64) ** 2, axis=1) / 2
    np.testing.assert_allclose(np.diag(matrix), exact, rtol=3e-7)
    assert (matrix == matrix.T).all()


def test_order_of_the_points_is_the_order_of_rows_and_columns():
    rng = np.random.default_rng(3)
    x, order = rng.normal(size=(40, 6)), rng.permutation(40)
    with jax.enable_x64(True):
        matrix = np.asarray(gram(relu_ntk, x, block=16))
        permuted = gram(relu_ntk, x[order], block=16)
    np.testing.assert_allclose(
        permuted, matrix[np.ix_(order, order)], rtol=1e-13, atol=1e-14
    )


def test_memory_beside_the_result_is_that_of_blocks():
    def needed(n, block):
        points = jax.ShapeDtypeStruct((n, 4), jnp.float32)
        lowered = fill_blocks.lower(as_pytree(inner_cubed), points, None, block)
        memory: Any = lowered.compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert needed(4096, 64) < 4 * 4096**2 / 50
    # Twice the points, four times the result: the blocks need what they needed.
    assert needed(4096, 64) < 1.5 * needed(2048, 64) + 2**18


def test_gram_can_be_differentiated_and_compiled():
    x = np.random.default_rng(4).normal(size=(7, 4)).astype(np.float32)
    slope = jax.jit(jax.grad(lambda a: gram(relu_ntk, a, x, block=3).sum()))(x)
    direct = jax.grad(lambda a: relu_ntk(a, x).sum())(jnp.asarray(x))
    np.testing.assert_allclose(slope, direct, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rows_are_divided_over_four_devices():
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


def test_bad_input_gets_one_line():
    x = np.ones((3, 4), np.float32)
    for call, words in (
        (lambda: gram(inner_cubed, x, block=0), "block is 0"),
        (lambda: gram(inner_cubed, x[0]), r"A has shape \(4,\)"),
        (lambda: gram(inner_cubed, x, x[:, :2]), r"B has shape \(3, 2\)"),
        (lambda: gram(inner_cubed, x[:0]), r"A has shape \(0, 4\)"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
