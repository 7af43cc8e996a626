"""One block of adaptation at toy widths: who moves, who rests, and what the critic sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import begin, example_of, shrink

from cacjax import train
from cacjax.kernels import losses
from cacjax.models import moments
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


def block_of(config):
    """(state at the start, jitted step) of a config."""
    return begin(config), jax.jit(build(config).train_step)


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
    assert {"gap", "gap_fresh", "told_apart", "mmd"} <= metrics.keys()
    assert metrics["critic_gradient"] > 0 and 0 < metrics["critic_live"] < 1


@pytest.mark.parametrize("constraint", ["spectral", "gradient_penalty"])
def test_other_constraints_than_clipping(constraint):
    """Both networks move by the adversarial loss alone: without decay and labels a dead critic would leave them where they are. Kernels far
    above the spectral limit come below it."""
    config = shrink(uda_config.get_config(""))
    config.critic.constraint, config.critic.statistics = constraint, "none"
    config.weight_decay, config.classification_weight, config.pretrain_blocks = 0.0, 0.0, 0
    state, step = block_of(config)
    critic = state.nets["critic"]
    state = state._replace(nets=state.nets | {"critic": critic._replace(params=jax.tree.map(lambda p: 20 * p, critic.params))})
    after, metrics = step(state, random_batch(config), jax.random.key(2))
    assert moved(state.nets["critic"], after.nets["critic"]) and moved(state.nets["generator"], after.nets["generator"])
    assert metrics["critic_gradient"] > 0
    kernels = [np.asarray(p) for p in jax.tree.leaves(after.nets["critic"].params) if p.ndim > 1]
    largest = max(np.linalg.svd(k.reshape(-1, k.shape[-1]), compute_uv=False)[0] for k in kernels)
    assert largest < 1.05 if constraint == "spectral" else largest > 2


def test_a_gradient_penalty_brings_the_slope_to_one():
    """Between domains that are the same nothing else acts on the critic."""
    config = shrink(uda_config.get_config(""))
    config.critic.update({"constraint": "gradient_penalty", "statistics": "none", "rate": 0.01})
    system, same = uda.system_of(config), np.random.default_rng(0).normal(size=(4, 9, 9, 6)).astype(np.float32)
    net = begin(config).nets["critic"]
    penalty = jax.jit(lambda params: losses.gradient_penalty(lambda x: system.critic.apply(params, x, 0), same, same, jax.random.key(0)))
    update = jax.jit(lambda net: uda.critic_update(system, same, same, net, (np.arange(2), np.arange(2), jax.random.key(0)))[0])
    before = penalty(net.params)
    for _ in range(30):
        net = update(net)
    assert penalty(net.params) < 0.1 * before


def test_a_critic_without_statistics_is_alive_whatever_the_seed():
    """Of features that are much alike a single rectified channel would let all through, or nothing."""
    critic, windows = Critic((16, 1)), np.random.default_rng(0).normal(-0.3, 0.1, (4, 7, 7, 6)).astype(np.float32)

    def slope(key):
        params = critic.init(key, windows, 0)
        return jnp.abs(jax.grad(lambda x: critic.apply(params, x, 0).mean())(windows)).max()

    assert np.all(jax.jit(lambda keys: jax.lax.map(slope, keys))(jax.random.split(jax.random.key(0), 32)) > 0)


def test_a_dead_critic_ends_the_training_and_names_the_step(records, tmp_path):
    config = shrink(uda_config.get_config("tiny"), steps=2)
    config.critic.clip = 0.0  # of every parameter nothing is left
    with pytest.raises(FloatingPointError, match=r"step 1: the critic is dead: .*exactly zero.*the last good checkpoint stays"):
        train.train(config, tmp_path / "dead")
    assert not (tmp_path / "dead" / "metrics.jsonl").read_text() and (tmp_path / "dead" / "source" / "metrics.jsonl").read_text()
    config.adversarial_weight = 0.0  # then nobody asks it
    config.stages.source.workdir = str(tmp_path / "dead" / "source")
    assert train.train(config, tmp_path / "unasked").step == 2


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


@pytest.fixture(scope="module")
def matched():
    """A block of a generator with statistics by domain: its config, state after pre-training, batch and jitted step."""
    config = shrink(uda_config.get_config(""))
    config.generator.statistics = "domain"
    state, step = block_of(config)
    batch = random_batch(config)
    return config, state, step(state, batch, jax.random.key(2))[0], batch, step


def test_moments_are_measured_in_pretraining_and_rest_after(matched):
    _, state, first, batch, step = matched
    darker = batch | {"pool_target": {"hu": batch["pool_target"]["hu"] // 2}}  # of other moments
    second, _ = step(first, darker, jax.random.key(3))
    assert moved(state.nets["affine"], first.nets["affine"]) and not moved(first.nets["affine"], second.nets["affine"])


def test_the_affine_of_the_target_is_what_critic_and_answer_see(matched):
    """Whose generator is folded, and whose affine then changes nothing, answers alike; the critic of an affine sees another target."""
    config, _, state, batch, step = matched
    generator, affine = (state.nets[name].params for name in ("generator", "affine"))
    with_affine = lambda generator, affine: state._replace(nets=state.nets | {"generator": generator, "affine": affine})  # noqa: E731
    plain = state.nets["affine"]._replace(params=moments.identity(generator))
    folded = with_affine(state.nets["generator"]._replace(params=moments.fold(generator, affine)), plain)
    hu = np.random.default_rng(0).integers(-200, 600, (3, 12, 12)).astype(np.float32)
    ours, theirs, other = (build(config).predict(each, hu)[1] for each in (state, folded, with_affine(state.nets["generator"], plain)))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.abs(ours - other).max() > 1e-3
    gap, other = (step(each, batch, jax.random.key(3))[1]["gap_fresh"] for each in (state, with_affine(state.nets["generator"], plain)))
    assert abs(gap - other) > 1e-6


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


def test_the_published_form_has_the_numbers_of_the_paper():
    """Rates, decay, clip, alpha and how many updates; those of the authors' code by their README."""
    config, code = uda_config.get_config(""), uda_config.get_config("code")
    assert (config.critic.rate, config.generator.rate, config.weight_decay, config.critic.clip) == (5e-4, 5e-5, 5e-4, 0.1)
    assert (config.classification_weight, config.adversarial_weight, config.mmd_weight) == (2, 1, 0)
    for each in (config, code):
        assert each.pretrain_blocks * each.critic.updates == 20_000
        assert (each.steps - each.pretrain_blocks) * each.generator.updates == 10_000
    first, fewer = code.critic.late
    assert (first - code.pretrain_blocks) * code.critic.updates + (code.steps - first) * fewer == 124_250


@pytest.mark.parametrize("variant", ["", "code", "tiny", "tiny,three"])
def test_the_target_is_other_scans_and_has_no_labels(variant):
    for name, stream in uda_config.get_config(variant).streams.items():
        assert stream.split == f"{name.removeprefix('pool_')}_train" and stream.labelled == (name == "source")


def test_an_unknown_word_of_a_variant_is_told_with_all_that_there_are():
    with pytest.raises(ValueError, match=r"'tinny'.*tiny, quick, tone, three, view, code"):
        uda_config.get_config("tinny")
