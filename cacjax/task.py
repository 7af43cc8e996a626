"""What every system is made of: Task, State, Net, Prediction, and the optimisers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cacjax.data import sampling
from cacjax.models.dilated import margin


class Prediction(NamedTuple):
    """What a network says of a scan, on the grid of `hu` [z, y, x].

    label: most probable class, uint8 (0 background, 1-3 LAD, LCX, RCA, 4-6 aorta, aortic valve, mitral valve).
    p_cac: probability of coronary calcium (classes 1 to 3), float32.
    hu: the intensities that a score reads.
    """

    label: Any
    p_cac: Any
    hu: Any


class Net(NamedTuple):
    """One network's arrays: parameters, running statistics (an empty dict where there are none), optimiser state."""

    params: Any
    stats: Any
    opt: Any


class State(NamedTuple):
    """Everything that training changes, arrays only: it jits, shards and saves as it is."""

    step: Any
    nets: dict[str, Net]


def plane_patches(config) -> dict:
    """How samples of a plane network are cut: its orientations and slab, and as much around a patch as its dilations reach."""
    return {"planes": sampling.PLANES[: config.model.planes], "margin": margin(config.model.dilations), "slab": config.model.slab}


class Task(NamedTuple):
    """A system: pure functions.

    init(key, batch, source) -> State; `source` is the State of a source network, or None.
    train_step(state, batch, key) -> (State, metrics)
    predict(state, hu, box) -> Prediction; hu float32 [z, y, x] in Hounsfield units on the network's grid, box ((z0, y0, x0),
    (z1, y1, x1)) limits the work, None means the whole scan. That of a segmentation gives class probabilities [classes, z, y, x].
    cut(config) -> the fields planes, margin and slab of `sampling.StreamSpec`: how training samples are cut, as for a plane network
    unless the system says otherwise.
    """

    init: Callable
    train_step: Callable
    predict: Callable
    cut: Callable = plane_patches


def start(params, optimiser) -> Net:
    """A network at the beginning of its training."""
    return Net(params, {}, optimiser.init(params))


def update(net: Net, grads, optimiser) -> Net:
    """One optimiser step; returns the new network."""
    updates, opt = optimiser.update(grads, net.opt, net.params)
    return net._replace(params=optax.apply_updates(net.params, updates), opt=opt)


def rmsprop(rate, *, weight_decay: float = 0.0):
    """RMSprop with PyTorch's semantics: decay .99, eps 1e-8 outside the root, coupled L2, first average zero."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False, initial_scale=0.0),
        optax.scale_by_learning_rate(rate),
    )


def adam(rate, *, weight_decay: float = 0.0):
    """Adam with L2 on the kernels (not the biases) added to the gradient, as Lasagne's penalty does."""
    kernels = lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params)  # noqa: E731
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(rate),
    )


def clip(params, bound: float):
    """Clamp every parameter to [-bound, bound]: the weight clipping of a Wasserstein critic."""
    return jax.tree.map(lambda p: jnp.clip(p, -bound, bound), params)


def spectral(params, *, bound: float = 1.0, iterations: int = 8):
    """Scale every kernel down to a largest singular value of `bound`, as a matrix [all inputs, outputs] (Miyato 2018, section 2.1)."""

    def limit(kernel):
        if kernel.ndim < 2:
            return kernel
        matrix = kernel.reshape(-1, kernel.shape[-1])
        u = jnp.ones(matrix.shape[1], kernel.dtype)
        for _ in range(iterations):
            u = matrix.T @ (matrix @ u)
            u = u / (jnp.linalg.norm(u) + 1e-12)
        return kernel * jnp.minimum(1.0, bound / (jnp.linalg.norm(matrix @ u) + 1e-12))

    return jax.tree.map(limit, params)


def learning_rate(*, peak: float, steps: int, warmup: int, drop_at: float, drop: float):
    """Linear warm-up over `warmup` steps, then constant, times `drop` after the share `drop_at` of `steps`."""

    def rate(step):
        warm = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        return peak * warm * jnp.where(step >= drop_at * steps, drop, 1.0)

    return rate
