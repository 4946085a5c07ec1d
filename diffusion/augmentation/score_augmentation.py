"""Score Augmentation: transform the noisy image, predict the transformed clean one.

With x0 a clean image, n noise of standard deviation sigma and T_omega a random map,

    Score Augmentation        input T(x0 + n),    target T(x0),    condition omega
    non-leaky augmentation    input T(x0) + n,    target T(x0),    condition omega

For a linear T the optimum of the first is E[T x0 | u] = u + sigma^2 T T^T s_T(u), with
u = T(x0 + n) and s_T the score of u's law.  For an orthogonal T the two problems are
the same in distribution; see ``docs/score_augmentation.md``.

Source: Hou et al., arXiv 2508.07926, and Karras et al., arXiv 2206.00364, appendix F.
What the paper leaves open is an option here.
"""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from configs.augmentation_schema import (
    COMBINATIONS,
    LOSS_NORMALIZATIONS,
    MODES,
    NOISY_SIDES,
    SIGMA_LABELS,
)
from configs.errors import InputError, InputWarning, require, require_choice
from diffusion.augmentation.combinations import OneOf, leaves_of, pixel_map_of
from diffusion.augmentation.pixel_map import gain_of, visible_share
from diffusion.augmentation.transforms import Brightness, Transform

__all__ = ["AugmentedBatch", "Draw", "ScoreAugmentation"]


class AugmentedBatch(NamedTuple):
    """What a denoiser is trained on.

    Attributes:
        noisy: Network input, (B, H, W, C).
        target: What it should return, (B, H, W, C).
        condition: omega, (B, k) with zeros for the identity; None without condition.
        sigma: Noise level that the network is told, (B,).
    """

    noisy: Array
    target: Array
    condition: Array | None
    sigma: Array


class StageDraw(NamedTuple):
    """One transform of each image: whether it acts, (B,) bool, and its parameters."""

    active: Array
    params: Any


class Draw(NamedTuple):
    """Everything random of a batch: the two stages of which a mode uses one or both."""

    nla: StageDraw | None
    score: StageDraw | None


@dataclass(frozen=True)
class ScoreAugmentation:
    """From clean images and noise to what a denoiser is trained on.

    Called as ``augment(keys, clean, noise, sigma)``.  Each image has a key of its own,
    so what it gets depends neither on the devices nor on the parts that a batch is
    computed in.

    Args:
        transform: T; `OneOf` for several.
        mode: none; nla (T acts on the clean image); score (on the noisy one); nla+score
            (nla_transform acts on the clean, transform on the noisy image).
        noisy_side: score: joint, T(x0 + n); split, T(x0) + T(n), which differs for
            transforms that are not linear; clean, T(x0) + n, which is nla.
        sigma_label: nominal, sigma; effective, b sigma where T multiplies the noise by
            b.
        condition: Whether the network is told omega.
        loss_normalization: none; gain, the loss is divided by b^2; visible, by the
            share of pixels that T does not hide.
        identity_probability: How often an image stays as it is; None: 1/(K + 1) for the
            K transforms of a `OneOf`, 1/2 for another transform, and 0 for one that
            draws the identity itself.  Of nla+score, each of the two by itself.
        identity_anneal_images: (a, b): from a images seen to b this probability goes
            linearly to 1.
        combination: nla+score: sequential, both act, nla first; either, a fair coin
            decides for each image.
        nla_transform: nla+score: what acts on the clean image; None: transform.

    Raises:
        InputError: If an option is unknown or out of range.

    Warns:
        InputWarning: If there is no condition and a network cannot see what was done,
            so that samples will be transformed too.
    """

    transform: Transform
    mode: str = "score"
    noisy_side: str = "joint"
    sigma_label: str = "nominal"
    condition: bool = True
    loss_normalization: str = "none"
    identity_probability: float | None = None
    identity_anneal_images: tuple[int, int] | None = None
    combination: str = "sequential"
    nla_transform: Transform | None = None

    def __post_init__(self) -> None:
        """Check the options; warn of leaks."""
        require_choice("augmentation mode", self.mode, MODES)
        require_choice("noisy side", self.noisy_side, NOISY_SIDES)
        require_choice("sigma label", self.sigma_label, SIGMA_LABELS)
        require_choice(
            "loss normalization", self.loss_normalization, LOSS_NORMALIZATIONS
        )
        require_choice("combination", self.combination, COMBINATIONS)
        share = self.identity_probability
        require(
            share is None or 0 <= share <= 1,
            "identity_probability",
            share,
            "in [0, 1] or None",
        )
        anneal = self.identity_anneal_images
        require(
            anneal is None or 0 <= anneal[0] < anneal[1],
            "identity_anneal_images",
            anneal,
            "two increasing numbers of images >= 0, or None",
        )
        if not self.condition and self._leaking():
            warnings.warn(
                f"{' and '.join(self._leaking())} without condition: the network "
                "cannot see at every noise level what was done, so samples will be "
                "transformed too; set condition to True",
                InputWarning,
                stacklevel=3,
            )

    def __call__(
        self,
        keys: Array,
        clean: Array,
        noise: Array,
        sigma: ArrayLike,
        *,
        images_seen: ArrayLike | None = None,
    ) -> AugmentedBatch:
        """Augment a batch.

        Args:
            keys: (B,) typed keys, one an image: ``fold_in(step_key, index)``.
            clean: x0, (B, H, W, C), data units.
            noise: n, (B, H, W, C), of standard deviation sigma.
            sigma: Noise levels, () or (B,).
            images_seen: Images trained on so far, (), for identity_anneal_images.

        Returns:
            Network input, target, condition and noise level, in the dtype of `clean`.

        Raises:
            InputError: If a transform cannot act on images of this shape.
        """
        draw = self.draw(keys, clean.shape[1:], images_seen=images_seen)
        return self.apply(draw, clean, noise, sigma)

    def draw(
        self,
        keys: Array,
        shape: tuple[int, ...],
        *,
        images_seen: ArrayLike | None = None,
    ) -> Draw:
        """Draw the parameters of a batch of images of shape (H, W, C)."""

        def one(key: Array) -> Draw:
            nla_key, score_key, coin_key = jax.random.split(key, 3)
            nla = score = None
            if self._nla is not None:
                nla = self._draw_stage(self._nla, nla_key, shape, images_seen)
            if self._score is not None:
                score = self._draw_stage(self._score, score_key, shape, images_seen)
            if nla is not None and score is not None and self.combination == "either":
                coin = jax.random.bernoulli(coin_key, jnp.float32(0.5))
                nla = nla._replace(active=nla.active & coin)
                score = score._replace(active=score.active & ~coin)
            return Draw(nla, score)

        return jax.vmap(one)(keys)

    def apply(
        self, draw: Draw, clean: Array, noise: Array, sigma: ArrayLike
    ) -> AugmentedBatch:
        """Augment a batch with given parameters; see `__call__`."""
        if clean.shape != noise.shape:
            raise InputError(
                f"clean has shape {clean.shape} and noise {noise.shape}; they must "
                "agree"
            )
        if self._nla is not None and draw.nla is not None:
            clean = _transformed(self._nla, draw.nla, clean)
        noisy, target = clean + noise, clean
        if self._score is not None and draw.score is not None:
            target = _transformed(self._score, draw.score, clean)
            if self.noisy_side == "joint":
                noisy = _transformed(self._score, draw.score, noisy)
            elif self.noisy_side == "split":
                noisy = target + _transformed(self._score, draw.score, noise)
            else:
                noisy = target + noise
        label = jnp.broadcast_to(jnp.asarray(sigma, clean.dtype), clean.shape[:1])
        if self.sigma_label == "effective" and self.noisy_side != "clean":
            label = label * self.noise_gain(draw, clean.shape[1:]).astype(label.dtype)
        condition = self.encode(draw) if self.condition else None
        if condition is not None:
            condition = condition.astype(clean.dtype)
        return AugmentedBatch(noisy, target, condition, label)

    def encode(self, draw: Draw) -> Array | None:
        """Return the condition (B, k), that of nla first; None in mode none."""
        stages = ((self._nla, draw.nla), (self._score, draw.score))
        parts = [
            jnp.where(stage.active[:, None], jax.vmap(item.encode)(stage.params), 0.0)
            for item, stage in stages
            if item is not None and stage is not None
        ]
        return jnp.concatenate(parts, axis=1) if parts else None

    def noise_gain(self, draw: Draw, shape: tuple[int, ...]) -> Array:
        """Return the factor on the noise of each image, (B,)."""
        return self._of_score(draw, shape, gain_of)

    def loss_factor(self, draw: Draw, shape: tuple[int, ...]) -> Array | None:
        """Return the factor on each image's loss, (B,); None for 1.

        A gain counts on either side, as the target has it; pixels count as hidden on
        the noisy side alone, for on the clean side they carry noise.
        """
        if self.loss_normalization == "none" or self.mode == "none":
            return None
        if self.loss_normalization == "gain":
            gain = self._of_score(draw, shape, gain_of)
            if self._nla is not None and draw.nla is not None:
                gain = gain * _measured(self._nla, draw.nla, shape, gain_of)
            return gain**-2
        if self._score is None or self.noisy_side == "clean":
            return None
        share = self._of_score(draw, shape, visible_share)
        return jnp.where(share > 0, 1 / jnp.maximum(share, 1e-6), 0.0)

    def condition_size(self, shape: tuple[int, ...]) -> int:
        """Return k for images of shape (H, W, C); 0 without condition.

        Raises:
            InputError: If a transform cannot act on such images.
        """
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        found = jax.eval_shape(
            lambda k: self.encode(self.draw(k, shape, images_seen=0)), keys
        )
        return 0 if found is None or not self.condition else found.shape[1]

    @property
    def families(self) -> tuple[str, ...]:
        """Names of what an image may have undergone; the first is nothing at all."""
        names = ["identity"]
        if self._nla is not None:
            prefix = "" if self._score is None else "nla "
            names += [prefix + name for name in _member_names(self._nla)]
        if self._score is not None:
            names += _member_names(self._score)
        return tuple(names)

    def family(self, draw: Draw) -> Array:
        """Return for each image the index of its family, (B,) int32.

        Where both stages act, it is that of the noisy side.
        """
        stages = [(self._nla, draw.nla), (self._score, draw.score)]
        found, first = None, 1
        for item, stage in stages:
            if item is None or stage is None:
                continue
            told = (jax.vmap(item.encode)(stage.params) != 0).any(axis=1)
            index = first + _member_index(item, stage)
            index = jnp.where(stage.active & told, index, 0)
            found = index if found is None else jnp.where(index > 0, index, found)
            first += len(_member_names(item))
        if found is None:
            raise InputError("in mode none nothing is drawn, so there are no families")
        return found

    @property
    def _nla(self) -> Transform | None:
        """What acts on the clean image before anything else."""
        if self.mode == "nla":
            return self.transform
        if self.mode == "nla+score":
            return self.nla_transform or self.transform
        return None

    @property
    def _score(self) -> Transform | None:
        """What acts on the noisy image."""
        return self.transform if self.mode in ("score", "nla+score") else None

    def _draw_stage(
        self,
        transform: Transform,
        key: Array,
        shape: tuple[int, ...],
        images_seen: ArrayLike | None,
    ) -> StageDraw:
        identity_key, params_key = jax.random.split(key)
        share = jnp.float32(self._identity_share(transform))
        if self.identity_anneal_images is not None:
            if images_seen is None:
                raise InputError(
                    "identity_anneal_images is set, so images_seen must be given"
                )
            first, last = self.identity_anneal_images
            progress = (jnp.float32(images_seen) - first) / (last - first)
            share = share + (1 - share) * jnp.clip(progress, 0, 1)
        active = jax.random.uniform(identity_key, dtype=jnp.float32) >= share
        return StageDraw(active, transform.sample(params_key, shape))

    def _identity_share(self, transform: Transform) -> float:
        if self.identity_probability is not None:
            return self.identity_probability
        if getattr(transform, "draws_identity", False):
            return 0.0
        return 1 / (len(_member_names(transform)) + 1)

    def _of_score(self, draw: Draw, shape: tuple[int, ...], measure: Any) -> Array:
        if self._score is None or draw.score is None:
            return jnp.ones((), jnp.float32)
        return _measured(self._score, draw.score, shape, measure)

    def _leaking(self) -> list[str]:
        """Return the names of transforms that a network cannot see."""
        names = []
        clean_side = self.noisy_side == "clean"
        if self._score is not None:
            names += [
                type(item).__name__
                for item in _members(self._score)
                if clean_side
                or not item.self_identifying
                or (self.sigma_label == "effective" and _has_gain(item))
            ]
        if self._nla is not None:
            names += [type(item).__name__ for item in _members(self._nla)]
        return [name for name in dict.fromkeys(names) if name != "Identity"]


def _has_gain(transform: Transform) -> bool:
    return any(isinstance(leaf, Brightness) for leaf in leaves_of(transform))


def _transformed(transform: Transform, stage: StageDraw, x: Array) -> Array:
    """Return T x where the stage is active and x elsewhere, (B, H, W, C)."""
    active = stage.active[:, None, None, None]
    return jnp.where(active, jax.vmap(transform.apply)(stage.params, x), x)


def _measured(
    transform: Transform, stage: StageDraw, shape: tuple[int, ...], measure: Any
) -> Array:
    """Return a number of each image's pixel map, (B,); 1 for other transforms."""

    def one(params: Any) -> Array:
        if isinstance(transform, OneOf):
            pairs = zip(transform.transforms, params.members, strict=True)
            found = [
                _measured_member(item, member, shape, measure) for item, member in pairs
            ]
            return jnp.stack(found)[params.index]
        return _measured_member(transform, params, shape, measure)

    return jnp.where(stage.active, jax.vmap(one)(stage.params), 1.0)


def _measured_member(
    transform: Transform, params: Any, shape: tuple[int, ...], measure: Any
) -> Array:
    found = pixel_map_of(transform, params, shape)
    return jnp.ones((), jnp.float32) if found is None else measure(found)


def _members(transform: Transform) -> tuple[Transform, ...]:
    return transform.transforms if isinstance(transform, OneOf) else (transform,)


def _member_names(transform: Transform) -> list[str]:
    """Return the names of the members; those that occur again are numbered."""
    names: list[str] = []
    for item in _members(transform):
        name = type(item).__name__
        again = sum(other.split()[0] == name for other in names)
        names.append(f"{name} {again + 1}" if again else name)
    return names


def _member_index(transform: Transform, stage: StageDraw) -> Array:
    return stage.params.index if isinstance(transform, OneOf) else jnp.int32(0)
