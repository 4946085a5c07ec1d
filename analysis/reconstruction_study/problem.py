"""A data set with settings: points, noise, the reference, and what is compared with it.

Networks are trained in float32; references are float64.  Of equal settings and seeds
everything is the same.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from analysis.autoencoder.energy import quadrature
from analysis.reconstruction_study.arms import Arm, Trained, arm_settings, train_arm
from analysis.reconstruction_study.data import StudyData
from analysis.reconstruction_study.reference import Reference
from analysis.reconstruction_study.settings import StudySettings
from configs.errors import InputError
from diffusion.denoiser import Denoiser
from diffusion.training.loading import checkpoint_steps
from samplers.model import Model, load_model

__all__ = ["Study"]

_ROLES = (
    "clean",
    "held-out",
    "noise",
    "networks",
    "pairs",
    "chains",
    "maxima",
    "estimators",
)
_EMPIRICAL, _TRUTH = "training points (KDE)", "truth"


@dataclass(frozen=True)
class Study:
    """A data set, the settings, and the folder that trained auto-encoders are kept in.

    Args:
        data: See `analysis.reconstruction_study.data.load_data`.
        settings: What to do.
        folder: Of the page.
    """

    data: StudyData
    settings: StudySettings
    folder: Path

    def key(self, role: str, seed: int = 0) -> Array:
        """Return a key for one of the roles of randomness and one seed."""
        base = jax.random.key(self.settings.seed)
        return jax.random.fold_in(jax.random.fold_in(base, _ROLES.index(role)), seed)

    @property
    def sigma(self) -> float:
        """The noise level, data units."""
        given = self.settings.sigma
        return self.data.sigma if given is None else given

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the table of estimators, rising."""
        if self.settings.sigmas is not None:
            return self.settings.sigmas
        return (0.1, 0.3, 1.0) if self._images else (self.sigma,)

    @property
    def moves(self) -> int:
        """Moves of each chain."""
        given = self.settings.moves
        return (200 if self._images else 1000) if given is None else given

    @property
    def step_unit(self) -> float:
        """Standard deviation of a step called 1 sigma, data units: sigma sqrt(2 / D).

        Moves are then as long as with sigma in the plane.  With sigma itself a random
        walk is hardly ever accepted where there are many dimensions.
        """
        return self.sigma * math.sqrt(2 / self.data.dimension)

    @property
    def _images(self) -> bool:
        return len(self.data.event) == 3

    @cached_property
    def clean(self) -> NDArray[np.float32]:
        """(N, *event) samples to learn from."""
        if self.data.clean is not None:
            return self.data.clean
        return self._drawn("clean", self.settings.num_points)

    @cached_property
    def held_out(self) -> NDArray[np.float32]:
        """(M, *event) clean samples for tests, as many as there are up to a number."""
        count = self.settings.test_points
        if self.data.held_out is None:
            return self._drawn("held-out", count)
        order = jax.random.permutation(self.key("held-out"), len(self.data.held_out))
        rows = self.data.held_out[np.asarray(order)]
        # Few samples are noised several times.
        return np.concatenate([rows] * -(-count // len(rows)))[:count]

    @property
    def num_held_out(self) -> int:
        """Different samples among those."""
        given = self.data.held_out
        return min(len(self.held_out), len(self.held_out if given is None else given))

    @cached_property
    def noisy(self) -> NDArray[np.float32]:
        """(M, *event) the held-out samples with noise of sigma."""
        return self.noised(self.held_out, self.sigma)

    def noised(
        self, clean: NDArray[np.float32], sigma: float, seed: int = 0
    ) -> NDArray[np.float32]:
        """Return samples with noise of their own, in the same shape."""
        noise = jax.random.normal(self.key("noise", seed), clean.shape, jnp.float32)
        return np.asarray(clean + np.float32(sigma) * noise)

    def fresh(self, count: int, seed: int) -> NDArray[np.float32]:
        """Return noisy samples to compare chains with, (n, *event), of known laws new.

        Held-out samples, where they are all there is, are noised anew.
        """
        if self.data.draw is not None:
            return self.noised(self._drawn("held-out", count, seed), self.sigma, seed)
        assert self.data.held_out is not None, "what is not drawn is given"
        which = jax.random.choice(
            self.key("held-out", seed), len(self.data.held_out), (count,)
        )
        return self.noised(self.data.held_out[np.asarray(which)], self.sigma, seed)

    @cached_property
    def reference(self) -> Reference:
        """The known law, or else that of the training points."""
        return self.truth or self.kde

    @cached_property
    def truth(self) -> Reference | None:
        """The known law, if there is one."""
        return None if self.data.law is None else Reference(_TRUTH, self.data.law)

    @cached_property
    def kde(self) -> Reference:
        """The law of the training points, each a Gaussian of width sigma."""
        points_alone = self.data._replace(law=None)
        return Reference(_EMPIRICAL, points_alone.law_of(self.clean))

    @cached_property
    def network(self) -> Model | None:
        """The diffusion network that was asked for, or came with the data.

        Raises:
            InputError: If there is no run, or its samples have another shape.
        """
        path = self.settings.network or self.data.network
        if path is None:
            return None
        checkpoint_steps(path)
        model = load_model(path)
        if tuple(model.event_shape) != self.data.event:
            raise InputError(
                f"the network of {path} is for samples of shape "
                f"{tuple(model.event_shape)} and {self.data.name} has "
                f"{self.data.event}; give a run on the same data"
            )
        return model

    def trained(self, arm: Arm, sigma: float | None = None) -> Trained:
        """Return an auto-encoder, trained now or by an earlier call.

        Args:
            arm: Which.
            sigma: Its noise level; None for the study's.
        """
        level = self.sigma if sigma is None else sigma
        return train_arm(
            arm,
            arm_settings(
                arm,
                level,
                self.settings,
                dimension=self.data.dimension,
                squash=self.data.squash,
            ),
            self.clean,
            self.key("networks"),
            folder=self.folder / "partial",
            digest=self.data.digest,
            seed=self.settings.seed,
        )

    def scores(self) -> dict[str, Denoiser]:
        """Return what energies, chains and maxima are made of, by name.

        The auto-encoder in the residual form, and the diffusion network if there is
        one; the reference is not among them.
        """
        found: dict[str, Denoiser] = {
            "auto-encoder": self.trained(Arm.RESIDUAL).denoiser
        }
        if self.network is not None:
            found["network"] = self.network.denoiser
        return found

    def check(self) -> None:
        """Refuse settings that could not be followed, before anything is trained.

        Raises:
            InputError: If a rule does not exist, a start has another shape or zero
                density, or the network does not fit the data or the noise level.
        """
        s = self.settings
        for rule in (*s.rules, s.rule):
            quadrature(rule)
        if s.start is not None and len(s.start) != self.data.dimension:
            raise InputError(
                f"--start has {len(s.start)} numbers and a sample of {self.data.name} "
                f"{self.data.dimension}; give as many"
            )
        if s.start is not None and not np.isfinite(self._log_density(s.start)):
            raise InputError(
                f"chains would start at {s.start}, a point of zero density; give a "
                "--start nearer to the data"
            )
        if self.network is not None:
            low, high = self.network.sigma_range
            if not low <= self.sigma <= high:
                raise InputError(
                    f"sigma is {self.sigma:g} and the network knows {low:g} to "
                    f"{high:g}; give such a noise level with --sigma"
                )

    def _log_density(self, point: tuple[float, ...]) -> float:
        """Return log p at a point in the precision of the chains."""
        x = jnp.asarray(point, jnp.float32).reshape(1, *self.data.event)
        return float(self.reference.log_density_at(self.sigma)(x)[0])

    def _drawn(self, role: str, count: int, seed: int = 0) -> NDArray[np.float32]:
        assert self.data.draw is not None, "there is a known law"
        return np.asarray(self.data.draw(self.key(role, seed), count), np.float32)
