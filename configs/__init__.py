"""What an experiment is: frozen dataclasses and one module per experiment.

This package holds data only and imports nothing but the standard library.
"""

from configs.errors import InputError
from configs.schema import ExperimentConfig, GenerationConfig, SamplerConfig

__all__ = ["ExperimentConfig", "GenerationConfig", "InputError", "SamplerConfig"]
