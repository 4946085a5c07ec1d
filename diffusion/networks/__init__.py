"""Network architectures, as pure functions of a nested dict of parameters."""

from diffusion.networks.functional import build_network

__all__ = ["build_network"]
