"""The presets: every module of this package that defines ``config``."""

import importlib
import pkgutil

import configs
from configs.errors import choice_error
from configs.schema import ExperimentConfig

__all__ = ["load_preset", "preset_names"]

_NOT_PRESETS = (
    "closed_form_schema",
    "errors",
    "network_schema",
    "preparation_schema",
    "presets",
    "schema",
    "training_schema",
)


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, sorted; nothing is imported."""
    found = (module.name for module in pkgutil.iter_modules(configs.__path__))
    return tuple(sorted(name for name in found if name not in _NOT_PRESETS))


def load_preset(name: str) -> ExperimentConfig:
    """Return the configuration of a preset.

    Args:
        name: Such as ``"digits"``.

    Returns:
        The experiment, before any change from a command line.

    Raises:
        InputError: If there is no preset of that name.
    """
    if name not in preset_names():
        raise choice_error("preset", name, preset_names())
    return importlib.import_module(f"configs.{name}").config
