"""Moving x from sigma_max to 0: grids, solvers and starts for any denoiser."""

from samplers.adaptive import adaptive_dpm_solver
from samplers.chains import Acceptance, Chain, measure_acceptance
from samplers.dpm_solver_pp import DPMSolverPP
from samplers.dpm_solver_v3 import DPMSolverV3
from samplers.effective_variances import (
    EffectiveVariances,
    load_effective_variances,
    save_effective_variances,
)
from samplers.euler import Euler
from samplers.gain_estimation import GainEstimate, estimate_gains
from samplers.heun import Heun
from samplers.inversion import Inverse, Inversion, invert
from samplers.langevin import annealed_langevin, langevin_recon
from samplers.likelihood import (
    BitsPerDimension,
    LogLikelihood,
    bits_per_dimension,
    dequantise,
    log_likelihood,
)
from samplers.metropolis_hastings import mala_sample, mh_sample
from samplers.model_statistics import (
    ModelStatistics,
    TabulatedStatistics,
    gaussian_statistics,
    load_model_statistics,
    pixel_statistics,
    save_model_statistics,
)
from samplers.residual_exponential import ResidualExponential
from samplers.sampling import sample, sample_blocks, teleport
from samplers.schedules import karras, log_linear, skip_above, vp_uniform
from samplers.skip import SkipCandidate, SkipChoice, choose_skip
from samplers.skip_calibration import SkipCalibration, calibrate_skip
from samplers.solver import Solution, Solver, Trace, integrate
from samplers.start import (
    AnalyticPrefix,
    ClassTeleport,
    MomentMatched,
    Prior,
    Start,
    Teleport,
)
from samplers.statistics_estimation import estimate_model_statistics
from samplers.stochastic_heun import StochasticHeun
from samplers.unipc import UniPC

__all__ = [
    "Acceptance",
    "AnalyticPrefix",
    "BitsPerDimension",
    "Chain",
    "ClassTeleport",
    "DPMSolverPP",
    "DPMSolverV3",
    "EffectiveVariances",
    "Euler",
    "GainEstimate",
    "Heun",
    "Inverse",
    "Inversion",
    "LogLikelihood",
    "ModelStatistics",
    "MomentMatched",
    "Prior",
    "ResidualExponential",
    "SkipCalibration",
    "SkipCandidate",
    "SkipChoice",
    "Solution",
    "Solver",
    "Start",
    "StochasticHeun",
    "TabulatedStatistics",
    "Teleport",
    "Trace",
    "UniPC",
    "adaptive_dpm_solver",
    "annealed_langevin",
    "bits_per_dimension",
    "calibrate_skip",
    "choose_skip",
    "dequantise",
    "estimate_gains",
    "estimate_model_statistics",
    "gaussian_statistics",
    "integrate",
    "invert",
    "karras",
    "langevin_recon",
    "load_effective_variances",
    "load_model_statistics",
    "log_likelihood",
    "log_linear",
    "mala_sample",
    "measure_acceptance",
    "mh_sample",
    "pixel_statistics",
    "sample",
    "sample_blocks",
    "save_effective_variances",
    "save_model_statistics",
    "skip_above",
    "teleport",
    "vp_uniform",
]
