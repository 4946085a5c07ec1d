"""One forward pass and one training step of DDPM++, against the same network in torch.

Command: python -m benchmarks.network_step [--only small full]

Both get the same random weights and inputs; outputs are asserted equal first, then the
two take turns.  A step is loss, gradient and Adam.  The torch network is the one of the
parity tests, in the memory layout that is faster for it; the ceiling is a large matrix
product of the same process.  On a machine with an accelerator it also measures images
per second in bfloat16.
"""

import argparse
import json
import sys
import time
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


class Ours:
    """The step in JAX, with state of its own."""

    def __init__(self, network: Any, params: Any, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        optimizer = optax.adam(1e-4)
        self.forward_fn = jax.jit(network.apply)
        self.start = jax.tree.map(jnp.asarray, params)
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


class Theirs:
    """The same in torch."""

    def __init__(self, case: dict[str, Any], inputs: dict[str, Any]) -> None:
        import torch

        self.torch = torch
        self.net = Net(torch, case)
        self.inputs = {k: torch.from_numpy(np.array(v)) for k, v in inputs.items()}
        with torch.no_grad():
            self.net(**self.inputs)  # makes the tensors
        self.tensors = self.net.get.tensors
        self.optimizer = torch.optim.Adam(
            [t for t in self.tensors.values() if t.requires_grad], lr=1e-4
        )

    def to_channels_last(self) -> None:
        for tensor in self.tensors.values():
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(
                    memory_format=self.torch.channels_last
                )

    def forward(self) -> Any:
        with self.torch.no_grad():
            return self.net(**self.inputs)

    def step(self) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        y = self.net(**self.inputs)
        loss = (y - self.inputs["x"]).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def measure(name: str) -> dict[str, Any]:
    """Return times, ratios and fractions of the ceiling for one network."""
    case, batch = CASES[name]
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "x": jnp.asarray(rng.normal(size=(batch, 32, 32, 3)), jnp.float32),
        "c_noise": jnp.asarray(rng.uniform(-1, 1, batch), jnp.float32),
        "labels": jnp.eye(10)[rng.integers(0, 10, batch)],
        "condition": jnp.asarray(rng.normal(size=(batch, 9)), jnp.float32),
    }
    theirs = Theirs(case, inputs)
    tensors = {f"model.{k}": v.detach().numpy() for k, v in theirs.tensors.items()}
    model = convert_edm("EDMPrecond", edm_arguments(case), tensors)
    network = build_network(model.network, model.event_shape)
    ours = Ours(network, model.params, inputs)
    figures: dict[str, Any] = {
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


def accelerator() -> dict[str, Any]:
    """Return images per second in bfloat16 on the accelerator."""
    network = build_network(
        SongUNetConfig(augment_dim=9, dtype="bfloat16"), (32, 32, 3)
    )
    params = network.init(jax.random.key(0))
    figures: dict[str, Any] = {"device": str(jax.devices()[0])}
    a = jnp.ones((8192, 8192), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    peak = 2 * 8192**3 / seconds_of({"": lambda: multiply(a, a)}, 20)[""]
    figures["matmul_tflops"] = peak / 1e12
    for batch in (128, 512):
        inputs = {
            "x": jax.random.normal(jax.random.key(1), (batch, 32, 32, 3)),
            "c_noise": jnp.zeros(batch),
            "labels": None,
            "condition": jnp.zeros((batch, 9)),
        }
        ours = Ours(network, params, inputs)
        seconds = seconds_of({"": ours.step}, 10)[""]
        figures[f"batch_{batch}"] = {
            "images_per_second": batch / seconds,
            "of_matmul": ours.flops["step"] / seconds / peak,
            "compile_seconds": ours.compile_seconds,
        }
    return figures


def main() -> None:
    """Measure and write after each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES))
    options = parser.parse_args()
    # As `diffusion.train` does; torch, in the same process, gains by it as well.
    keep_freed_memory()
    figures: dict[str, Any] = {}
    path = RESULTS / "network_step.json"
    if options.only and path.is_file():
        figures = json.loads(path.read_text())["figures"]
    if jax.default_backend() != "cpu":
        figures["accelerator"] = accelerator()
        write_result(
            "network_step_accelerator", "python -m benchmarks.network_step", figures
        )
        return
    for name in options.only or CASES:
        figures[name] = measure(name)
        print(name, json.dumps(figures[name], indent=1), flush=True)
        write_result("network_step", "python -m benchmarks.network_step", figures)


if __name__ == "__main__":
    main()
