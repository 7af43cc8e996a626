"""One block of adaptation at toy widths: who moves, who rests, and what the critic sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import begin, example_of, shrink

from cacjax.models.critic import Critic
from cacjax.task import build
from cacjax.tasks import uda
from configs import uda as uda_config


@pytest.fixture(scope="module")
def block():
    """A published-form block: its config, task, state at the start, batch, and jitted step."""
    config = shrink(uda_config.get_config(""))
    return config, begin(config), random_batch(config), jax.jit(build(config).train_step)


def random_batch(config):
    rng = np.random.default_rng(0)
    draw = lambda s: rng.integers(0, 4 if s.dtype == np.uint8 else 400, s.shape).astype(s.dtype)  # noqa: E731
    return jax.tree.map(draw, example_of(config))


def moved(before, after):
    return any(np.any(a != b) for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params)))


def test_generator_rests_in_pretraining_and_moves_after(block):
    config, state, batch, step = block
    first, _ = step(state, batch, jax.random.key(2))
    assert not moved(state.nets["generator"], first.nets["generator"])
    assert moved(state.nets["critic"], first.nets["critic"])
    second, metrics = step(first, batch, jax.random.key(3))
    assert moved(first.nets["generator"], second.nets["generator"]) and metrics["loss_classification"] > 0
    assert not moved(state.nets["heads"], second.nets["heads"])
    assert second.step == 2 and config.pretrain_blocks == 1


def test_critic_is_clipped_and_its_gap_is_reported(block):
    config, state, batch, step = block
    after, metrics = step(state, batch, jax.random.key(2))
    largest = max(float(np.abs(p).max()) for p in jax.tree.leaves(after.nets["critic"].params))
    assert largest <= config.critic.clip + 1e-7
    assert {"gap", "gap_fresh"} <= metrics.keys()
    assert 0 <= metrics["told_apart"] <= 1 and metrics["mmd"] > -1e-6


@pytest.mark.parametrize("constraint", ["spectral", "gradient_penalty"])
def test_other_constraints_than_clipping(constraint):
    config = shrink(uda_config.get_config(""))
    config.critic.constraint, config.critic.statistics = constraint, "none"
    task, state = build(config), begin(config)
    after, metrics = jax.jit(task.train_step)(state, random_batch(config), jax.random.key(2))
    assert moved(state.nets["critic"], after.nets["critic"]) and all(np.isfinite(v) for v in metrics.values())
    kernels = [np.asarray(p) for p in jax.tree.leaves(after.nets["critic"].params) if p.ndim > 1]
    largest = max(np.linalg.svd(k.reshape(-1, k.shape[-1]), compute_uv=False)[0] for k in kernels)
    assert largest < 1.05 or constraint != "spectral"


def block_of(config):
    """(state at the start, jitted step) of a config."""
    return begin(config), jax.jit(build(config).train_step)


def test_a_block_of_the_code_moves_the_generator_as_often_as_two_blocks():
    """With a critic that rests, ten (here two) generator updates of one block are those of as many blocks."""
    config = shrink(uda_config.get_config("code"))
    assert config.generator.updates == 2 and config.streams.source.count == (2, 2) and config.supervision.double_softmax_main
    assert config.model.stored == "float16"
    config.critic.rate, config.critic.clip, config.pretrain_blocks = 0.0, 1e3, 0
    batch = random_batch(config)
    state, step = block_of(config)
    together, metrics = step(state, batch, jax.random.key(2))
    config.generator.updates = 1
    for name in ("source", "target"):
        config.streams[name].count = (2,)
    apart, single = block_of(config)
    for i in range(2):
        part = batch | {name: jax.tree.map(lambda a, k=i: a[k], batch[name]) for name in ("source", "target")}
        apart, _ = single(apart, part, jax.random.key(2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together.nets["generator"].params, apart.nets["generator"].params
    )
    assert np.isfinite(metrics["loss_generator"]) and moved(state.nets["generator"], together.nets["generator"])


def test_a_minibatch_of_one_trains():
    """Line 7 of section 12 of the specification: where the authors' code loses an axis."""
    config = shrink(uda_config.get_config(""))
    config.critic.batch, config.pretrain_blocks = 1, 0
    for stream in config.streams.values():
        stream.count = (*stream.count[:-1], 1)
    state, step = block_of(config)
    after, metrics = step(state, random_batch(config), jax.random.key(2))
    assert moved(state.nets["generator"], after.nets["generator"]) and all(np.isfinite(value) for value in metrics.values())


def test_fewer_critic_updates_from_a_block_on():
    config = shrink(uda_config.get_config(""))
    batch = random_batch(config)
    config.critic.late = (1, 1)
    state, step = block_of(config)
    first, _ = step(state, batch, jax.random.key(2))
    late, metrics = step(state._replace(step=jnp.int32(1)), batch, jax.random.key(2))
    config.critic.late, config.critic.updates = (), 1
    once, _ = block_of(config)[1](state, batch, jax.random.key(2))
    assert moved(first.nets["critic"], late.nets["critic"]) and metrics["gap"] == metrics["gap_fresh"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), late.nets["critic"].params, once.nets["critic"].params)


def test_a_gradient_penalty_refuses_batch_statistics():
    config = shrink(uda_config.get_config(""))
    config.critic.constraint = "gradient_penalty"
    with pytest.raises(ValueError, match="statistics = none"):
        build(config)


def test_moments_are_measured_in_pretraining_and_rest_after():
    config = shrink(uda_config.get_config(""))
    config.generator.statistics = "domain"
    task, state = build(config), begin(config)
    step = jax.jit(task.train_step)
    first, _ = step(state, random_batch(config), jax.random.key(2))
    second, _ = step(first, random_batch(config), jax.random.key(3))
    assert moved(state.nets["affine"], first.nets["affine"]) and not moved(first.nets["affine"], second.nets["affine"])


def test_statistics_by_domain_hide_a_shift_that_joint_ones_show():
    """Target features that are the source's plus a constant: the same to a critic that normalises each domain apart."""
    source = np.random.default_rng(0).normal(size=(8, 9, 9, 3)).astype(np.float32)
    both = jnp.concatenate([source, source + 2.0])
    critic = Critic((4, 4))
    params = jax.jit(critic.init)(jax.random.key(0), both)
    apart, together = (critic.apply(params, both, groups) for groups in (2, 1))
    np.testing.assert_allclose(apart[:8], apart[8:], atol=1e-4)
    assert np.abs(together[:8] - together[8:]).max() > 0.05


def test_windows_are_cut_in_order():
    maps = jnp.arange(2 * 7 * 7).reshape(2, 7, 7, 1)
    windows = uda.cut_windows(maps, uda_config.ConfigDict({"critic": {"window": 3}}))
    assert windows.shape == (8, 3, 3, 1)
    np.testing.assert_array_equal(windows[1, :, :, 0], maps[0, :3, 3:6, 0])
    np.testing.assert_array_equal(windows[6, :, :, 0], maps[1, 3:6, :3, 0])


def test_draw_uses_each_window_once_where_the_pool_suffices():
    config = uda_config.ConfigDict({"critic": {"updates": 3, "batch": 2}})
    assert sorted(np.ravel(uda.draw(jax.random.key(0), 6, config))) == list(range(6))
    few = np.asarray(uda.draw(jax.random.key(0), 4, config))
    assert few.shape == (3, 2) and few.max() < 4 and all(len(set(row)) == 2 for row in few)


def test_split_and_join_are_inverse(block):
    _, state, _, _ = block
    whole = uda.join(state.nets["generator"].params, state.nets["heads"].params)
    generator, heads = uda.split(whole)
    assert set(generator) == {"subnets_0", "subnets_1", "subnets_2"}
    assert uda.join(generator, heads).keys() == whole.keys()


def test_an_unknown_word_of_a_variant_is_told_with_all_that_there_are():
    with pytest.raises(ValueError, match=r"'tinny'.*tiny, tone, three, view, code"):
        uda_config.get_config("tinny")
