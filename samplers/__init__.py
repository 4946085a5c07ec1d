"""Moving x from sigma_max to 0: grids, solvers and starts for any denoiser."""

from samplers.euler import Euler
from samplers.heun import Heun
from samplers.sampling import sample, sample_blocks, teleport
from samplers.schedules import karras, log_linear, skip_above
from samplers.solver import Solution, Solver, Trace, integrate
from samplers.start import MomentMatched, Prior, Start, Teleport

__all__ = [
    "Euler",
    "Heun",
    "MomentMatched",
    "Prior",
    "Solution",
    "Solver",
    "Start",
    "Teleport",
    "Trace",
    "integrate",
    "karras",
    "log_linear",
    "sample",
    "sample_blocks",
    "skip_above",
    "teleport",
]
