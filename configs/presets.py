"""The presets: every module of this package that defines ``config``.

A module may define ``variants`` as well, named ``PRESET:VARIANT``.
"""

import importlib
import pkgutil

import configs
from configs.errors import choice_error
from configs.schema import ExperimentConfig

__all__ = ["load_preset", "preset_names", "variant_names"]

_NOT_PRESETS = (
    "augmentation_schema",
    "closed_form_schema",
    "errors",
    "network_schema",
    "preparation_schema",
    "presets",
    "sampler_schema",
    "schema",
    "solver_table",
    "training_schema",
)


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, sorted; nothing is imported."""
    found = (module.name for module in pkgutil.iter_modules(configs.__path__))
    return tuple(sorted(name for name in found if name not in _NOT_PRESETS))


def load_preset(name: str) -> ExperimentConfig:
    """Return the configuration of a preset or of one of its variants.

    Args:
        name: Such as ``"digits"`` or ``"cifar10:cond"``.

    Returns:
        The experiment, before any change from a command line.

    Raises:
        InputError: If there is no preset or variant of that name.
    """
    preset, colon, variant = name.partition(":")
    if preset not in preset_names():
        raise choice_error("preset", preset, preset_names())
    module = importlib.import_module(f"configs.{preset}")
    if not colon:
        return module.config
    if variant not in variant_names(preset):
        raise choice_error(f"variant of {preset}", variant, variant_names(preset))
    return module.variants[variant]


def variant_names(preset: str) -> tuple[str, ...]:
    """Return the names of a preset's variants, sorted."""
    module = importlib.import_module(f"configs.{preset}")
    return tuple(sorted(getattr(module, "variants", {})))
