"""Fixtures shared by all tests; what is slow to compute is computed once."""

import dataclasses
import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

from configs.digits import config as digits
from configs.network_schema import MLPConfig, SongUNetConfig
from configs.schema import ExperimentConfig


@pytest.fixture(scope="session")
def tiny_config() -> ExperimentConfig:
    """Digits with a perceptron that compiles in a second."""
    return dataclasses.replace(
        digits,
        network=MLPConfig(width=16, num_layers=1),
        training=dataclasses.replace(
            digits.training,
            num_steps=20,
            batch_size=16,
            log_every_steps=5,
            evaluation_images=40,
            checkpoint_every_steps=10,
            checkpoint_every_seconds=1000.0,
        ),
    )


@pytest.fixture(scope="session")
def tiny_unet() -> SongUNetConfig:
    """The smallest U-Net with every kind of layer."""
    return SongUNetConfig(
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_resolutions=(4,),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory):
    """The workdir of a finished tiny run; tests must not change it."""
    from diffusion.training import train

    workdir = tmp_path_factory.mktemp("run")
    train(tiny_config, workdir)
    return workdir


def pytest_configure(config):
    """Compile without optimisation where the slow tests are left out.

    Most of the time of the fast tests is compilation.  `make test-all` runs them with
    the compiler's defaults.
    """
    if config.option.markexpr != "not slow":
        return
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # A third less to compile; other versions end on a flag they do not know.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as slow what a module names in `SLOW_TESTS`.

    An entry is a test ("test_x"), one member of it ("test_x[a]"), or a member of all
    tests of the module ("[a]").
    """
    for item in items:
        named = getattr(item.module, "SLOW_TESTS", ())
        function, bracket, member = item.name.partition("[")
        if {item.name, function, bracket + member or None} & set(named):
            item.add_marker(pytest.mark.slow)


def pytest_addoption(parser):
    parser.addoption(
        "--write-golden",
        action="store_true",
        help="write golden numbers anew from torch (tests/diffusion)",
    )
