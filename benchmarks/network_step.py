"""One forward pass and one training step of DDPM++, against the same network in torch.

Command: python -m benchmarks.network_step [--only small full]

Both get the same random weights and inputs; outputs are asserted equal first, then the
two take turns.  A step is loss, gradient and Adam.  The torch network is the one of the
parity tests, in the memory layout that is faster for it; the ceiling is a large matrix
product of the same process.

On a machine with an accelerator it measures training in bfloat16 instead: images per
second, the share of the matrix product's speed, and, where torch has CUDA, the ratio to
torch with autocast, channels last, `torch.compile` and fused Adam.  Both libraries then
share the accelerator's memory; what does not fit is reported as not measured.
"""

import argparse
import dataclasses
import gc
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import assert_same, matmul_gflops, seconds_of
from benchmarks.results_file import RESULTS, write_result
from configs.network_schema import SongUNetConfig
from diffusion.host_memory import keep_freed_memory
from diffusion.interop import convert_edm
from diffusion.networks import build_network
from diffusion.networks.cost import count_flops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "diffusion"))

from torch_networks import SONG, Net, edm_arguments

CASES = {
    "small": ({**SONG, "width": 64}, 16),
    "full": ({**SONG, "width": 128}, 8),
}
# Two bfloat16 networks of this depth are about 1 % apart, as each is from float32.
BFLOAT16_TOLERANCE = 0.05
STEPS_PER_CALL = 5  # on accelerators, where the next step is sent while one runs


class Ours:
    """The step in JAX, with state of its own."""

    def __init__(self, network: Any, params: Any, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        optimizer = optax.adam(1e-4)
        self.forward_fn = jax.jit(network.apply)
        # A copy: the step donates its state.
        self.start = jax.tree.map(jnp.array, params)
        self.state = (self.start, optimizer.init(self.start))

        def loss(params: Any, x: Any, c_noise: Any, labels: Any, condition: Any) -> Any:
            y = network.apply(params, x, c_noise, labels=labels, condition=condition)
            return jnp.mean(jnp.square(y - x))

        def step(state: Any, inputs: dict[str, Any]) -> Any:
            params, opt_state = state
            value, gradient = jax.value_and_grad(loss)(params, **inputs)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        lowered = jax.jit(step, donate_argnums=0).lower(self.state, inputs)
        started = time.perf_counter()
        self.step_fn = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.flops = {
            "forward": count_flops(network.apply, self.start, *inputs.values()),
            "step": count_flops(step, self.state, inputs),
        }

    def forward(self) -> Any:
        return self.forward_fn(self.state[0], **self.inputs)

    def step(self) -> Any:
        self.state, value = self.step_fn(self.state, self.inputs)
        return value

    def several_steps(self) -> Any:
        for _ in range(STEPS_PER_CALL):
            self.step()
        return self.state


class PooledNet(Net):
    """The network with the short filter's changes of resolution as GPUs like them."""

    def down(self, x: Any, pad: int | None = None) -> Any:
        return self.fn.avg_pool2d(x, 2)

    def up(self, x: Any) -> Any:
        return self.fn.interpolate(x, scale_factor=2.0, mode="nearest")


class Theirs:
    """The same in torch, on the CPU until `to_gpu`."""

    def __init__(self, case: dict[str, Any], inputs: dict[str, Any]) -> None:
        import torch

        self.torch = torch
        self.net = Net(torch, case)
        self.inputs = {k: torch.from_numpy(np.array(v)) for k, v in inputs.items()}
        with torch.no_grad():
            self.net(**{k: v[:1] for k, v in self.inputs.items()})  # makes the tensors
        self.tensors = self.net.get.tensors
        self.predict = self.net
        self.optimizer = self._adam()

    def _adam(self, **options: Any) -> Any:
        trained = [t for t in self.tensors.values() if t.requires_grad]
        return self.torch.optim.Adam(trained, lr=1e-4, **options)

    def to_channels_last(self) -> None:
        for tensor in self.tensors.values():
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(
                    memory_format=self.torch.channels_last
                )

    def to_gpu(self) -> None:
        """Move there, in bfloat16 by autocast, channels last, compiled."""
        torch = self.torch
        assert tuple(self.net.case["taps"]) == (1, 1), "PooledNet has this filter only"
        net = PooledNet(torch, self.net.case)
        net.get = self.net.get
        self.net = net
        self.inputs = {k: v.to("cuda") for k, v in self.inputs.items()}
        for tensor in self.tensors.values():
            tensor.data = tensor.data.to("cuda")
        self.to_channels_last()
        # All but the embedding, whose few small operations make tensors on the default
        # device; `dynamic` False, or the second batch size gets slower kernels.
        net.trunk = torch.compile(net.trunk, dynamic=False)

        def predict(**inputs: Any) -> Any:
            with torch.device("cuda"), torch.autocast("cuda", torch.bfloat16):
                return net(**inputs)

        self.predict = predict
        self.optimizer = self._adam(fused=True)

    def forward(self) -> Any:
        with self.torch.no_grad():
            return self.predict(**self.inputs)

    def step(self) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        y = self.predict(**self.inputs)
        self.output = y.detach()
        loss = (y - self.inputs["x"]).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def several_steps(self) -> None:
        for _ in range(STEPS_PER_CALL):
            self.step()
        self.torch.cuda.synchronize()


def inputs_of(case: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return random inputs of a network."""
    rng = np.random.default_rng(0)
    return {
        "x": jnp.asarray(rng.normal(size=(batch, *case["size"], 3)), jnp.float32),
        "c_noise": jnp.asarray(rng.uniform(-1, 1, batch), jnp.float32),
        "labels": jnp.eye(10)[rng.integers(0, 10, batch)],
        "condition": jnp.asarray(rng.normal(size=(batch, 9)), jnp.float32),
    }


def same_network(case: dict[str, Any], theirs: Theirs, dtype: str) -> tuple[Any, Any]:
    """Return our network with torch's weights, and those."""
    tensors = {f"model.{k}": v.detach().numpy() for k, v in theirs.tensors.items()}
    model = convert_edm("EDMPrecond", edm_arguments(case), tensors)
    config = dataclasses.replace(model.network, dtype=dtype)
    return build_network(config, (*case["size"], 3)), model.params


def measure(name: str) -> dict[str, Any]:
    """Return times, ratios and fractions of the ceiling for one network."""
    case, batch = CASES[name]
    inputs = inputs_of(case, batch)
    theirs = Theirs(case, inputs)
    network, params = same_network(case, theirs, "float32")
    ours = Ours(network, params, inputs)
    figures: dict[str, Any] = {
        "torch_version": theirs.torch.__version__,
        "batch": batch,
        "parameters": network.num_parameters(),
        "compile_seconds": round(ours.compile_seconds, 1),
        "output_error": assert_same(
            ours.forward(), theirs.forward().numpy(), 1e-4, "forward"
        ),
        "loss_error": assert_same(
            ours.step(), theirs.step().numpy(), 1e-4, "the step's loss"
        ),
    }
    contiguous = seconds_of({"": theirs.step}, repeats=2)[""]
    theirs.to_channels_last()
    channels_last = seconds_of({"": theirs.step}, repeats=2)[""]
    figures["torch_step_seconds_by_layout"] = {
        "contiguous": contiguous,
        "channels_last": channels_last,
    }
    if contiguous < channels_last:
        theirs = Theirs(case, inputs)
    peak = matmul_gflops()
    figures["matmul_gflops"] = peak
    for kind in ("forward", "step"):
        calls = {"ours": getattr(ours, kind), "torch": getattr(theirs, kind)}
        seconds = seconds_of(calls, repeats=6)
        gflops = ours.flops[kind] / 1e9
        figures[kind] = {
            "gflop": gflops,
            **{f"{who}_seconds": s for who, s in seconds.items()},
            "torch_over_ours": seconds["torch"] / seconds["ours"],
            **{f"{who}_of_matmul": gflops / s / peak for who, s in seconds.items()},
        }
    return figures


def accelerator(
    case: dict[str, Any], batches: Sequence[int], matmul_size: int = 8192
) -> Iterator[dict[str, Any]]:
    """Yield the figures of training in bfloat16, again whenever there are more."""
    a = jax.random.normal(jax.random.key(0), (matmul_size, matmul_size), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    peak = 2 * matmul_size**3 / seconds_of({"": lambda: multiply(a, a)}, 20)[""]
    why_not = why_torch_is_left_out()
    figures: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "matmul_tflops": peak / 1e12,
        "torch": why_not or "autocast, channels last, compiled, fused Adam",
    }
    print(f"torch: {figures['torch']}", flush=True)
    for batch in batches:
        found = figures[f"batch_{batch}"] = {}
        inputs = inputs_of(case, batch)
        theirs = None if why_not else Theirs(case, inputs)
        part = "ours"
        try:
            network, params = bfloat16_network(case, theirs)
            ours = Ours(network, params, inputs)
            first = np.asarray(ours.forward()), np.asarray(ours.step())
            found.update(training_figures(ours, network, batch, peak))
            yield figures
            part = "torch"
            if theirs is not None:
                found["against_torch"] = against_torch(ours, theirs, first, peak)
        except RuntimeError as error:  # as both libraries' errors are
            if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error)):
                raise
            found[f"{part}_not_measured"] = "out of memory"
        ours = network = params = None
        if theirs is not None:
            torch, theirs = theirs.torch, None
            gc.collect()
            torch.compiler.reset()
            torch.cuda.empty_cache()
        yield figures


def why_torch_is_left_out() -> str | None:
    """Return why no ratio to torch can be measured here, or None."""
    try:
        import torch
    except ImportError:
        return "ratio not measured: torch is not installed"
    if not torch.cuda.is_available():
        return f"ratio not measured: torch {torch.__version__} finds no CUDA"
    return None


def bfloat16_network(case: dict[str, Any], theirs: Theirs | None) -> tuple[Any, Any]:
    """Return the network, with torch's weights or fresh ones."""
    if theirs is not None:
        return same_network(case, theirs, "bfloat16")
    config = SongUNetConfig(
        model_channels=case["width"],
        channel_mult=case["mult"],
        num_blocks=case["blocks"],
        attention_resolutions=case["attention"],
        label_dim=10,
        augment_dim=9,
        dtype="bfloat16",
    )
    network = build_network(config, (*case["size"], 3))
    return network, network.init(jax.random.key(0))


def training_figures(ours: Ours, network: Any, batch: int, peak: float) -> Any:
    """Return our own speed."""
    seconds = seconds_of({"": ours.several_steps}, 4)[""] / STEPS_PER_CALL
    return {
        "parameters": network.num_parameters(),
        "compile_seconds": ours.compile_seconds,
        "step_seconds": seconds,
        "images_per_second": batch / seconds,
        "of_matmul": ours.flops["step"] / seconds / peak,
    }


def against_torch(
    ours: Ours, theirs: Theirs, first: tuple[Any, Any], peak: float
) -> dict[str, Any]:
    """Return times side by side, after comparing output and loss of the first step."""
    theirs.to_gpu()
    started = time.perf_counter()
    loss = theirs.step().item()
    compile_seconds = time.perf_counter() - started
    output = theirs.output.float().cpu().numpy()
    errors = {
        "output_error": assert_same(first[0], output, BFLOAT16_TOLERANCE, "output"),
        "loss_error": assert_same(first[1], loss, BFLOAT16_TOLERANCE / 5, "loss"),
    }
    calls = {"ours": ours.several_steps, "torch": theirs.several_steps}
    found = seconds_of(calls, repeats=4)
    seconds = {who: s / STEPS_PER_CALL for who, s in found.items()}
    return {
        "torch_version": theirs.torch.__version__,
        "torch_compile_seconds": compile_seconds,
        **errors,
        **{f"{who}_step_seconds": s for who, s in seconds.items()},
        "torch_over_ours": seconds["torch"] / seconds["ours"],
        **{
            f"{who}_of_matmul": ours.flops["step"] / s / peak
            for who, s in seconds.items()
        },
    }


def main() -> None:
    """Measure and write after each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES))
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[128, 512], help="on accelerators"
    )
    options = parser.parse_args()
    # As `diffusion.train` does; torch, in the same process, gains by it as well.
    keep_freed_memory()
    # Leaves torch its share of an accelerator's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    command = "python -m benchmarks.network_step"
    if jax.default_backend() != "cpu":
        for figures in accelerator(CASES["full"][0], options.batches):
            print(json.dumps(figures, indent=1), flush=True)
            write_result("network_step_accelerator", command, figures)
        return
    figures = {}
    path = RESULTS / "network_step.json"
    if options.only and path.is_file():
        figures = json.loads(path.read_text())["figures"]
    for name in options.only or CASES:
        figures[name] = measure(name)
        print(name, json.dumps(figures[name], indent=1), flush=True)
        write_result("network_step", command, figures)


if __name__ == "__main__":
    main()
