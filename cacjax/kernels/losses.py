"""Losses as pure functions of arrays: cross-entropies, Dice, the Wasserstein gap, the maximum mean discrepancy.

Nothing here draws random numbers or knows a network.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer, PRNGKeyArray, Real, Shaped


def cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Integer[ArrayLike, "*batch"],
    *,
    weights: Float[ArrayLike, "*batch"] | None = None,
    double_softmax: bool = False,
) -> Float[Array, ""]:
    """Mean (or weighted mean) cross-entropy; `double_softmax` feeds probabilities in as logits, as Zhai 2022's code does."""
    if double_softmax:
        logits = jax.nn.softmax(logits)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None].astype(jnp.int32), axis=-1)[..., 0]
    if weights is None:
        return -picked.mean()
    return -(weights * picked).sum() / weights.sum()


def candidate_weights(
    labels: Integer[ArrayLike, "*batch"],
    hu: Real[ArrayLike, "*batch"],
    *,
    calcium: float,
    bright: float,
    rest: float,
    bright_hu: float = 107.0,
) -> Float[Array, "*batch"]:
    """Pixel weights for training on whole maps: calcium, other voxels near or above the threshold, the rest."""
    return jnp.where(labels > 0, calcium, jnp.where(hu >= bright_hu, bright, rest))


def soft_dice(
    probability: Float[ArrayLike, "*batch classes"], labels: Integer[ArrayLike, "*batch"], *, smooth: float = 1.0
) -> Float[Array, " classes"]:
    """Dice overlap of each class: (2 sum pg + smooth) / (sum p + sum g + smooth), sums over the whole batch (Bruns 2022).

    Not squared; a class that is nowhere has an overlap near 1 if it is not predicted.
    """
    axes = tuple(range(labels.ndim))
    real = jax.nn.one_hot(labels, probability.shape[-1], dtype=probability.dtype)
    shared, sizes = (probability * real).sum(axes), (probability + real).sum(axes)
    return (2 * shared + smooth) / (sizes + smooth)


def squared_dice(
    probability: Float[ArrayLike, " volumes *voxels"], real: Shaped[ArrayLike, " volumes *voxels"], *, smooth: float = 1.0
) -> Float[Array, " volumes"]:
    """Dice overlap of each volume of a batch: (2 sum pg + smooth) / (sum p^2 + sum g^2 + smooth) (Milletari 2016, equation 4)."""
    axes = tuple(range(1, probability.ndim))
    real = jnp.asarray(real, probability.dtype)
    shared, sizes = (probability * real).sum(axes), (jnp.square(probability) + jnp.square(real)).sum(axes)
    return (2 * shared + smooth) / (sizes + smooth)


def gradient_penalty(
    value: Callable, source: Float[ArrayLike, " n *sample"], target: Float[ArrayLike, " n *sample"], key: PRNGKeyArray
) -> Float[Array, ""]:
    """Mean of (|gradient| - 1)^2 of `value` at random points between pairs of samples (Gulrajani 2017, equation 3).

    value: [n, ...] -> [n], each sample's from that sample alone.
    """
    share = jax.random.uniform(key, (len(source), *[1] * (source.ndim - 1)), source.dtype)
    slope = jax.grad(lambda x: value(x).sum())(share * source + (1 - share) * target)
    length = jnp.sqrt(jnp.square(slope).sum(tuple(range(1, slope.ndim))) + 1e-12)
    return jnp.square(length - 1).mean()


def critic_loss(source_values: Float[ArrayLike, " s"], target_values: Float[ArrayLike, " t"]) -> Float[Array, ""]:
    """What the critic minimises: minus the Wasserstein gap E_source - E_target (Zhai 2022, equation 1, sign of the code)."""
    return target_values.mean() - source_values.mean()


def told_apart(source_values: Float[ArrayLike, " s"], target_values: Float[ArrayLike, " t"]) -> Float[Array, ""]:
    """Share of pairs of a source and a target sample that a critic orders rightly (the area under its ROC curve); confused: .5."""
    return (jnp.sign(source_values[:, None] - target_values).mean() + 1) / 2


def area_under_curve(values: Float[ArrayLike, " n"], positive: Bool[ArrayLike, " n"], negative: Bool[ArrayLike, " n"]) -> Float[Array, ""]:
    """Chance that a positive value is above a negative one, equal ones half (the area under the ROC curve); nan where there are none."""
    ordered = jnp.sort(jnp.where(negative, values, jnp.inf))
    below, not_above = (jnp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    pairs = jnp.where(positive, (below + not_above) / 2, 0).sum()
    return pairs / (positive.sum() * negative.sum())


def maximum_mean_discrepancy(
    source: Float[ArrayLike, "m k"], target: Float[ArrayLike, "n k"], *, kernels: int = 5, factor: float = 2.0
) -> Float[Array, ""]:
    """Biased estimate with a sum of Gaussian kernels between rows; the bandwidth follows the batch.

    Identical rows throughout give 0 (the published code divides by zero there).
    """
    rows = jnp.concatenate([source, target])
    squared = jnp.square(rows[:, None] - rows[None]).sum(-1)
    n = len(rows)
    bandwidth = jax.lax.stop_gradient(squared).sum() / (n**2 - n) / factor ** (kernels // 2)
    bandwidth = jnp.where(bandwidth > 0, bandwidth, 1.0)
    kernel = sum(jnp.exp(-squared / (bandwidth * factor**i)) for i in range(kernels))
    m = len(source)
    return kernel[:m, :m].mean() + kernel[m:, m:].mean() - kernel[:m, m:].mean() - kernel[m:, :m].mean()
