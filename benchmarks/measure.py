"""Time and memory of a call, and the machine's ceiling, all within one process."""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def seconds_of(
    calls: Mapping[str, Callable[[], Any]], repeats: int = 5
) -> dict[str, float]:
    """Return the fastest of some runs of each call; they take turns.

    Each call is made once before, so that nothing is compiled while the clock runs.
    """
    for call in calls.values():
        _wait(call())
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            _wait(call())
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def scratch_mib(call: Callable[[], Any]) -> float:
    """Return by how much a call raises the process's resident memory at its peak, MiB.

    Needs Linux: what the allocator holds back is returned and the high-water mark is
    reset before the call.  The result of the call counts as scratch.
    """
    _wait(call())
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    _wait(call())
    return (_status("VmHWM") - before) / 1024


def matmul_gflops(size: int = 4096, dtype: str = "float32") -> float:
    """Return the speed of a large matrix product of this type, GFLOP/s."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    multiply = jax.jit(lambda x, y: jnp.matmul(x, y, precision="highest"))
    return 2 * size**3 / seconds_of({"": lambda: multiply(a, a)})[""] / 1e9


def relative_error(found: Any, reference: Any) -> float:
    """Return |found - reference| / |reference| over all entries, in float64."""
    a, b = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def assert_same(found: Any, reference: Any, tolerance: float, what: str) -> float:
    """Return the relative error, after asserting that it is below the tolerance."""
    error = relative_error(found, reference)
    assert error < tolerance, f"{what}: relative error {error:.2e}"
    return error


def _wait(value: Any) -> None:
    jax.block_until_ready(value)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")
