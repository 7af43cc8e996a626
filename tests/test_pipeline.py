"""From Hounsfield units to tables in one program: no callback, nothing compiled twice, the same whatever the padding and the batch."""

import functools
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax.inference import planes
from cacjax.kernels import lesions, rules, scores, spatial
from cacjax.models.dilated import Dilated
from cacjax.scoring import one_scan
from cacjax.scoring import program as pipeline

NETWORK_MM = (1.5, 0.9, 0.9)
RULE = rules.RULES["default"]
MODEL = Dilated(width=2, dilations=(1, 2), hidden=4)


def scan(seed, *, shape=(7, 44, 52), spacing_mm=(3.0, 0.7, 0.7)):
    """(HU, heart, spacing) with enhanced blood, bright lesions in and out of the heart, and noise above 130 HU."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(60, 45, shape)
    heart = np.zeros(shape, bool)
    heart[1:-1, 8:30, 10:40] = True
    hu[heart] += 60
    for _ in range(12):
        z, y, x = (int(rng.integers(0, n - 3)) for n in shape)
        hu[z : z + 2, y : y + int(rng.integers(1, 4)), x : x + 3] = rng.integers(300, 900)
    return hu.round().astype(np.float32), heart, spacing_mm


@pytest.fixture(scope="module")
def predict():
    """A small random network that calls about every second voxel calcium."""
    params = jax.jit(MODEL.init)(jax.random.key(3), jnp.zeros((1, 3, 7, 7, 1)))
    return pipeline.traceable(functools.partial(_predict, params))


def _predict(params, hu, wanted):
    return planes.predict(MODEL, params, hu, wanted)


def make(hu, heart, spacing_mm, *, threshold_hu=200.0, reduction="paper", classify="all", network_mm=NETWORK_MM):
    numbers = scores.numbers(RULE, spacing_mm, rules.pixel_score(RULE, spacing_mm))
    options = {"mode": reduction, "dilation_mm": 2.0, "classify": classify}
    config = types.SimpleNamespace(spacing_mm=network_mm)
    return one_scan.make_case(hu, heart, spacing_mm, threshold_hu, numbers, config, RULE, options)


def cut(volume, like):
    return np.asarray(volume)[tuple(slice(0, n) for n in like.shape)]


def by_hand(predict, hu, heart, spacing_mm, *, threshold_hu=200.0, reduction="paper"):
    """The same scan step by step without padding, every voxel of the heart's box classified: (mask, detected)."""
    network_hu, true_mm = spatial.resample(hu, spacing_mm, NETWORK_MM, order=3)
    label = np.asarray(predict(network_hu, jnp.ones(network_hu.shape, bool)).label)
    if heart is not None:
        low, high = one_scan.box_around(heart, network_hu.shape, NETWORK_MM)
        inside = np.zeros(label.shape, bool)
        inside[tuple(slice(a, b) for a, b in zip(low, high))] = True
        label = np.where(inside, label, 0)
    back = np.asarray(spatial.resample(label, true_mm, spacing_mm, order=0, shape=hu.shape)[0])
    detected = np.where(hu >= min(130, threshold_hu), back, 0).astype(np.uint8)
    if reduction == "none":
        return np.where(hu >= threshold_hu, detected, 0), detected
    around = None if heart is None else spatial.dilate(heart, 2.0, spacing_mm)
    return np.asarray(lesions.grow(detected, hu, threshold_hu, around, spacing_mm, mode=reduction)[0]), detected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("reduction", "with_heart"), [("paper", True), ("paper", False), ("authors_code", True), ("none", False)])
def test_equals_full_evaluation_step_by_step(predict, seed, with_heart, reduction):
    hu, heart, spacing_mm = scan(seed)
    heart = heart if with_heart else None
    mask, detected = by_hand(predict, hu, heart, spacing_mm, reduction=reduction)
    assert mask.any() and (detected > 0).sum() > (mask > 0).sum() / 2
    found = pipeline.detect_and_score(predict, *make(hu, heart, spacing_mm, reduction=reduction))
    np.testing.assert_array_equal(cut(found.detected, hu), detected)
    np.testing.assert_array_equal(cut(found.mask, hu), mask)
    for classify in ("threshold", "mask"):
        few = pipeline.detect_and_score(predict, *make(hu, heart, spacing_mm, reduction=reduction, classify=classify))
        np.testing.assert_array_equal(cut(few.mask, hu), mask)
        chosen = ... if classify == "threshold" else mask > 0
        np.testing.assert_allclose(cut(few.probability, hu)[chosen], cut(found.probability, hu)[chosen], rtol=1e-6)
    expected = scores.score(mask, hu, spacing_mm)
    totals = jax.device_get(found.tables.totals)
    unit = rules.pixel_score(RULE, spacing_mm)
    ours = scores.by_artery(scores.from_totals(totals, spacing_mm, RULE, unit))
    for a, b in zip(ours[1:3], expected[1:3]):
        np.testing.assert_array_equal(a, b)
    assert int(found.tables.category) == scores.category(expected.agatston[-1])
    for number in range(1, 7):
        labels, n = lesions.label(mask == number)
        rows = lesions.full_table(labels, n, hu, mask, spacing_mm)
        for name in ("voxels", "peak_hu", "low", "high", "touches_border", "centroid"):
            theirs = np.asarray(getattr(rows, name))[: int(n)]
            mine = np.asarray(getattr(found.tables.lesions, name))[number - 1, : int(n)]
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, err_msg=name)
        assert int(found.tables.lesions.n[number - 1]) == int(n)


def test_padding_changes_nothing(predict):
    """The same scan in larger buckets gives the same tables."""
    hu, heart, spacing_mm = scan(5)
    small = jax.device_get(pipeline.detect_and_score(predict, *make(hu, heart, spacing_mm)))
    sides = pipeline.SIDES
    try:
        pipeline.SIDES = (24, 80, 128)
        large = jax.device_get(pipeline.detect_and_score(predict, *make(hu, heart, spacing_mm)))
    finally:
        pipeline.SIDES = sides
    assert small.mask.shape != large.mask.shape
    np.testing.assert_array_equal(cut(small.mask, hu), cut(large.mask, hu))
    assert not large.mask[7:].any() and not large.mask[:, 44:].any() and not large.mask[:, :, 52:].any()
    assert small.tables.totals.voxels.sum() > 0
    for a, b in zip(jax.tree.leaves(small.tables.totals._replace(runs=0)), jax.tree.leaves(large.tables.totals._replace(runs=0))):
        np.testing.assert_array_equal(a, b)
    for name in ("voxels", "sum_hu", "centroid", "touches_border"):
        np.testing.assert_array_equal(getattr(small.tables.lesions, name), getattr(large.tables.lesions, name))


def test_one_program_without_callback(predict):
    case, how = make(*scan(0))
    jaxpr = str(jax.make_jaxpr(pipeline.detect_and_score, static_argnums=2)(predict, case, how))
    assert jaxpr.count("name=detect_and_score") == 1 and "callback" not in jaxpr
    compiled = pipeline.detect_and_score.lower(predict, case, how).compile().as_text()
    assert compiled.count("\nENTRY ") == 1
    assert not any(word in compiled for word in ("callback", "infeed", "outfeed", "send(", "recv("))


def test_a_second_scan_of_the_bucket_compiles_nothing_and_moves_only_scan_and_result(predict):
    first, how = make(*scan(0))
    jax.block_until_ready(pipeline.detect_and_score(predict, jax.device_put(first), how))
    # Another matrix, number of slices, spacing, threshold and heart.
    second, same = make(*scan(1, shape=(8, 46, 50), spacing_mm=(2.8, 0.72, 0.71)), threshold_hu=240.0)
    assert same == how and [leaf.shape for leaf in jax.tree.leaves(second)] == [leaf.shape for leaf in jax.tree.leaves(first)]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "compile" in name or "trac" in name else None
    )
    jax.jit(lambda a: a * 3 + len(compiled))(jnp.ones(5))
    assert any("compile" in name for name in compiled), "the listener must hear of compilations"
    compiled.clear()
    with jax.transfer_guard("disallow"):
        found = pipeline.detect_and_score(predict, jax.device_put(second), how)
        result = jax.device_get(found)
    assert not compiled
    assert result.tables.totals.voxels.sum() > 0
    besides = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(second._replace(hu=0, heart=0)))
    assert besides < 32 * 1024  # spacing, thresholds, the ball's rows, and where samples lie along each axis


def test_overflow_is_told_and_counted_again(predict):
    hu, heart, spacing_mm = scan(2)
    case, how = make(hu, heart, spacing_mm, reduction="none")
    full = jax.device_get(pipeline.detect_and_score(predict, case, how))
    most = int(full.tables.lesions.n.max())
    assert most > 2 and pipeline.ample(full.tables, how) is None
    tight = how._replace(capacity=2, buckets=(8,))
    small = jax.device_get(pipeline.detect_and_score(predict, case, tight))
    assert small.tables.totals.overflow and small.tables.lesions.overflow.any()
    again = jax.device_get(pipeline.tabulate(small.mask, case, pipeline.ample(small.tables, tight)))
    for a, b in zip(jax.tree.leaves(again.totals), jax.tree.leaves(full.tables.totals)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.lesions.voxels, full.tables.lesions.voxels)
    assert int(again.category) == int(full.tables.category)


def test_in_steps_equals_one_program(predict):
    case, how = make(*scan(3))
    whole = jax.device_get(pipeline.detect_and_score(predict, case, how))
    network_hu, wanted, around = pipeline.prepare(case, how)
    steps = jax.device_get(pipeline.conclude(case, how, predict(network_hu, wanted), around))
    for a, b in zip(jax.tree.leaves(whole._replace(probability=0)), jax.tree.leaves(steps._replace(probability=0))):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(whole.probability, steps.probability, atol=1e-6)


def test_risk_category_at_its_limits():
    """Whole numbers on the device decide as scores in float64 do, at every limit and for awkward pixel areas."""
    for scheme in scores.SCHEMES:
        for unit in (0.25, 0.238144, 0.1, 1 / 3, 0.0007):
            numbers = scores.numbers(RULE, (3.0, 0.5, 0.5), unit, scheme=scheme)
            limits = np.array(scores.SCHEMES[scheme].limits)
            totals = np.unique(np.maximum(np.round(limits[:, None] / unit) + np.arange(-2, 3), 0).astype(np.int32))
            for total in totals:
                found = scores.Totals(*[jnp.array([total, 0, 0, 7, 7, 7], jnp.int32)] * 8)
                assert int(scores.risk(found, numbers)) == scores.category(float(total) * unit, scheme=scheme), (scheme, unit, total)


def stacked(count, **options):
    cases = [make(*scan(10 + i), **options) for i in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(case for case, _ in cases)), cases


def test_vmap_equals_one_at_a_time(predict):
    batch, cases = stacked(2)
    how = cases[0][1]
    together = jax.jit(jax.vmap(lambda case: pipeline.detect_and_score(predict, case, how)))(batch)
    assert_equal_tables(together, predict, cases)


def assert_equal_tables(together, predict, cases):
    together = jax.device_get(together)
    for i, (case, how) in enumerate(cases):
        alone = jax.device_get(pipeline.detect_and_score(predict, case, how))
        assert alone.tables.totals.voxels.sum() > 0
        np.testing.assert_array_equal(together.mask[i], alone.mask)
        for a, b in zip(jax.tree.leaves(together.tables), jax.tree.leaves(alone.tables)):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


def test_eight_devices_equal_one_at_a_time():
    """A batch shared out over eight simulated devices, in a process of its own."""
    tests = pathlib.Path(__file__).parent
    program = f"""
import sys
sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]
import cacjax, jax, test_pipeline as t
from cacjax.scoring import program as pipeline
predict = t.predict.__wrapped__() if hasattr(t.predict, "__wrapped__") else t.predict._get_wrapped_function()()
batch, cases = t.stacked(8, reduction="none")
mesh = jax.make_mesh((8,), ("scans",), axis_types=(jax.sharding.AxisType.Auto,))
found = pipeline.over_scans(cases[0][1], mesh)(predict, batch)
assert len(found.mask.sharding.device_set) == 8
t.assert_equal_tables(found, predict, cases)
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
