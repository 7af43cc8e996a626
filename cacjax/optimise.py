"""One update of a network, the optimisers with their published semantics, constraints of a critic, schedules."""

import jax
import jax.numpy as jnp
import optax

from cacjax.task import Net

MEMBERS = "model"  # the mesh axis of stacked members


def start(optimiser, params, stats=None, *, validated: bool = False) -> Net:
    """A network at the beginning of its training. stats: running statistics, where it has them; validated: `keep_best` will be asked."""
    stats = {} if stats is None else stats
    return Net(params, stats, optimiser.init(params), (jnp.float32(-jnp.inf), params, stats) if validated else ())


def descend(net: Net, objective, optimiser):
    """One step down the gradient: (the new network, metrics). objective(params, stats) -> (loss, (metrics, new stats))."""
    grads, (metrics, stats) = jax.grad(objective, has_aux=True)(net.params, net.stats)
    return follow(net, grads, optimiser)._replace(stats=stats), metrics


def follow(net: Net, grads, optimiser) -> Net:
    """The network after a step of its optimiser."""
    updates, opt = optimiser.update(grads, net.opt, net.params)
    return net._replace(params=optax.apply_updates(net.params, updates), opt=opt)


def average(kept: Net, net: Net, decay) -> Net:
    """The running average of a network's parameters and statistics over its steps; what else `kept` holds stays."""
    mix = lambda old, new: decay * old + (1 - decay) * new  # noqa: E731
    params, stats = jax.tree.map(mix, (kept.params, kept.stats), (net.params, net.stats))
    return kept._replace(params=params, stats=stats)


def keep_best(net: Net, value) -> Net:
    """The network with its parameters and statistics kept as `best` where the `value` of a validation is higher than any before."""
    new = jnp.asarray(value, jnp.float32), net.params, net.stats
    return net._replace(best=jax.tree.map(lambda new, old: jnp.where(value > net.best[0], new, old), new, net.best))


def each_member(one, *stacked):
    """What one(*parts) gives for every member of arrays that are stacked along their first axis, stacked.

    On a CPU one member after another: all at once they would be groups of one convolution, which takes XLA:CPU twice the time and five
    times the memory. Elsewhere at once. Where the mesh in force has an axis "model", each device works on members of its own.
    """

    def here(*stacked):
        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda parts: one(*parts), stacked)
        return jax.vmap(one)(*stacked)

    mesh, along = jax.sharding.get_abstract_mesh(), jax.sharding.PartitionSpec(MEMBERS)
    if mesh.shape.get(MEMBERS, 1) == 1:
        return here(*stacked)
    return jax.shard_map(here, in_specs=along, out_specs=along, axis_names={MEMBERS}, check_vma=False)(*stacked)


def rmsprop(rate, *, weight_decay: float = 0.0):
    """RMSprop with PyTorch's semantics: decay .99, eps 1e-8 outside the root, coupled L2, first average zero."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False, initial_scale=0.0),
        optax.scale_by_learning_rate(rate),
    )


def adam(rate, *, weight_decay: float = 0.0, b1: float = 0.9):
    """Adam with L2 on the kernels (not the biases) added to the gradient, as Lasagne's penalty does. b1: decay of the mean."""
    kernels = lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params)  # noqa: E731
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.scale_by_adam(b1=b1),
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


def trapezoid(*, peak: float, steps: int, warmup: int, fall_from: float, last: float):
    """Linear warm-up over `warmup` steps, constant, then from the share `fall_from` of `steps` linearly down to `last` at their end."""
    ends = [max(warmup, 1), max(warmup, 1, int(fall_from * steps)), steps]
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / ends[0], peak, ends[0] - 1),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, last, max(ends[2] - ends[1], 1)),
        ],
        ends[:2],
    )


def cosine(*, peak: float, last: float, steps: int):
    """From `peak` at the first step down to `last` at the last one, along half a cosine (Loshchilov 2017)."""
    return optax.cosine_decay_schedule(peak, steps, alpha=last / peak)
