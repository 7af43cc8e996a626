"""From Hounsfield units to tables in one program: no callback, nothing compiled twice, the same whatever the padding and the batch."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage

from cacjax.inference import candidates, planes
from cacjax.kernels import grids, lesions, reduction, region_growing, rules, scores, spatial
from cacjax.models.dilated import Dilated
from cacjax.scoring import one_scan, program
from cacjax.task import Detector, Finding, Plan

NETWORK_MM = (1.5, 0.9, 0.9)
RULE = rules.RULES["default"]
MODEL = Dilated(width=2, dilations=(1, 2), hidden=4)
DILATION_MM = 2.0


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
def state():
    """Parameters of a small random network that calls about every second voxel calcium."""
    return jax.jit(MODEL.init)(jax.random.key(3), jnp.zeros((1, 3, 7, 7, 1)))


def predict(params, hu, wanted, **how):
    return planes.predict(MODEL, params, hu, wanted, **how)


@functools.cache
def detector(fp_reduction="paper", classify="all", network_mm=NETWORK_MM, least_probability=0.0):
    """One object for each choice: another one is another program."""
    scoring = {"fp_reduction": fp_reduction, "in_heart": 0.5, "classify": classify, "view": "none", "heart_dilation_mm": DILATION_MM}
    scoring["least_probability"] = least_probability
    return candidates.detector(
        ConfigDict({"scoring": scoring, "data": {"grid": {"spacing_mm": network_mm}}}), predict, planes.halo(MODEL, 1)
    )


def make(hu, heart, spacing_mm, *, threshold_hu=200.0, named_rules=(("default", RULE),), finder=None, **options):
    """What `program.detect_and_score` takes, behind the state: (find, case, reading, how)."""
    finder, named_rules = finder or detector(**options), dict(named_rules)
    case, plan = one_scan.make_case(finder, hu, spacing_mm, np.eye(4), heart, threshold_hu)
    weighing = one_scan.Weighing(named_rules, "default", None)
    reading, kinds, _ = one_scan.read_by(weighing, plan.shape or hu.shape, plan.spacing_mm or spacing_mm)
    return finder.find, case, reading, program.How(plan.how, kinds, finder.classes)


def compute(state, find, case, reading, how):
    return program.detect_and_score(find, state, case, reading, how)


def cut(volume, like):
    return grids.cut(volume, like.shape)


def by_hand(state, hu, heart, spacing_mm, *, threshold_hu=200.0, fp_reduction="paper"):
    """The same scan step by step without padding, every voxel of the heart's box classified: (mask, detected)."""
    network_hu, true_mm = spatial.resample(hu, spacing_mm, NETWORK_MM, order=3)
    label = np.asarray(predict(state, network_hu, jnp.ones(network_hu.shape, bool))[0])
    if heart is not None:
        low, high = grids.box_around(heart, network_hu.shape, NETWORK_MM, margin_mm=5.0)
        inside = np.zeros(label.shape, bool)
        inside[tuple(slice(a, b) for a, b in zip(low, high))] = True
        label = np.where(inside, label, 0)
    back = np.asarray(spatial.resample(label, true_mm, spacing_mm, order=0, shape=hu.shape)[0])
    detected = np.where(hu >= min(130, threshold_hu), back, 0).astype(np.uint8)
    if fp_reduction == "none":
        return np.where(hu >= threshold_hu, detected, 0), detected
    if fp_reduction == "lessmann":
        return np.asarray(region_growing.grow(detected, hu, threshold_hu, spacing_mm)[0]), detected
    around = None if heart is None else spatial.dilate(heart, DILATION_MM, spacing_mm)
    return np.asarray(reduction.grow(detected, hu, threshold_hu, around, spacing_mm, mode=fp_reduction)[0]), detected


def counted(mask, hu, spacing_mm):
    """Independent of the package: voxels of the slice components of each class that the default rule finds large enough."""
    found, least = np.zeros(mask.shape, bool), rules.min_voxels(RULE, spacing_mm)
    for number in range(1, 7):
        for z in range(len(mask)):
            labels, _ = ndimage.label((mask[z] == number) & (hu[z] >= 130), np.ones((3, 3)))
            sizes = np.bincount(labels.ravel())
            found[z] |= (sizes >= least)[labels] & (labels > 0)
    return found


def listed(mask, kept):
    """(labels, n) of the 26-connected lesions of a mask that hold counted voxels, of these voxels alone."""
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    some = np.unique(labels[kept])
    return np.where(kept, np.searchsorted(some, labels) + 1, 0).astype(np.int32), np.int32(len(some))


REDUCTIONS = [("paper", True), ("paper", False), ("authors_code", True), ("lessmann", True), ("none", False)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("fp_reduction", "with_heart"), REDUCTIONS)
def test_equals_full_evaluation_step_by_step(state, seed, with_heart, fp_reduction):
    hu, heart, spacing_mm = scan(seed)
    heart = heart if with_heart else None
    mask, detected = by_hand(state, hu, heart, spacing_mm, fp_reduction=fp_reduction)
    assert mask.any() and (detected > 0).sum() > (mask > 0).sum() / 2
    finding, tables = compute(state, *make(hu, heart, spacing_mm, fp_reduction=fp_reduction))
    assert finding.hu is None  # the caller has the scan
    np.testing.assert_array_equal(cut(finding.before, hu), detected)
    np.testing.assert_array_equal(cut(finding.label, hu), mask)
    for classify in ("threshold", "mask"):
        few, _ = compute(state, *make(hu, heart, spacing_mm, fp_reduction=fp_reduction, classify=classify))
        np.testing.assert_array_equal(cut(few.label, hu), mask)
        chosen = ... if classify == "threshold" else mask > 0
        np.testing.assert_allclose(cut(few.probability, hu)[chosen], cut(finding.probability, hu)[chosen], rtol=1e-6)
        assert few.before is None and not few.counts
    expected = scores.score(mask, hu, spacing_mm)
    (totals,), (category,) = jax.device_get((tables.totals, tables.categories))
    unit = rules.pixel_score(RULE, spacing_mm)
    ours = scores.by_artery(scores.from_totals(totals, spacing_mm, RULE, unit))
    for a, b in zip(ours[1:3], expected[1:3]):
        np.testing.assert_array_equal(a, b)
    assert int(category) == scores.category(expected.agatston[-1])
    label = program.scored_label(jax.device_get(tables), np.asarray(finding.label))
    kept = np.where(counted(mask, hu, spacing_mm), mask, 0)
    assert 0 < (kept > 0).sum() < (mask > 0).sum() or fp_reduction != "none"
    np.testing.assert_array_equal(cut(label, hu), kept)
    for number in range(1, 7):
        labels, n = listed(mask == number, kept == number)
        rows = lesions.full_table(labels, n, hu, mask, spacing_mm)
        assert int(totals.n_lesions[number - 1]) == n and int(totals.voxels[number - 1]) == rows.voxels.sum()
        for name in ("voxels", "peak_hu", "low", "high", "touches_border", "centroid"):
            theirs = np.asarray(getattr(rows, name))[: int(n)]
            mine = np.asarray(getattr(tables.lesions, name))[number - 1, : int(n)]
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, err_msg=name)
        assert int(tables.lesions.n[number - 1]) == int(n)


def test_lesions_without_a_voxel_that_the_network_is_sure_of_fall(state):
    hu, heart, spacing_mm = scan(0)
    everything, _ = compute(state, *make(hu, heart, spacing_mm))
    mask, probability = cut(everything.label, hu), cut(everything.probability, hu)
    labels, n = ndimage.label(hu >= 200)
    peaks = ndimage.maximum(np.where(mask > 0, probability, 0), labels, range(1, n + 1))
    least = float(np.median(peaks[peaks > 0]))
    expected = np.where(np.append(False, peaks >= np.float32(least))[labels], mask, 0)
    assert 0 < (expected > 0).sum() < (mask > 0).sum()
    for classify in ("all", "threshold", "mask"):
        found, _ = compute(state, *make(hu, heart, spacing_mm, classify=classify, least_probability=least))
        np.testing.assert_array_equal(cut(found.label, hu), expected)
    with pytest.raises(ValueError, match="least_probability needs"):
        detector(fp_reduction="none", least_probability=0.5)


@pytest.mark.parametrize("corner", [(8, 10), (95, 105), (50, 0)])
def test_the_network_sees_the_heart_and_what_it_reads_around(state, monkeypatch, corner):
    """A quarter of the scan, and the same answer, also at the scan's ends."""
    hu, _, spacing_mm = scan(4, shape=(7, 120, 150))
    heart = np.zeros(hu.shape, bool)
    heart[1:-1, corner[0] : corner[0] + 22, corner[1] : corner[1] + 40] = True
    mask, detected = by_hand(state, hu, heart, spacing_mm)
    assert mask.any()
    monkeypatch.setattr(grids, "BOX_SIDES", (8, 32, 48))
    find, case, reading, how = make(hu, heart, spacing_mm)
    assert how.plan.network == (32, 64, 64) and how.plan.longest == 48
    finding, _ = compute(state, find, case, reading, how)
    np.testing.assert_array_equal(cut(finding.before, hu), detected)
    np.testing.assert_array_equal(cut(finding.label, hu), mask)


def test_padding_changes_nothing(state, monkeypatch):
    """The same scan in larger buckets gives the same tables."""
    hu, heart, spacing_mm = scan(5)
    small, few = jax.device_get(compute(state, *make(hu, heart, spacing_mm)))
    monkeypatch.setattr(grids, "SIDES", (24, 80, 128))
    large, many = jax.device_get(compute(state, *make(hu, heart, spacing_mm)))
    assert small.label.shape != large.label.shape
    np.testing.assert_array_equal(cut(small.label, hu), cut(large.label, hu))
    assert not large.label[7:].any() and not large.label[:, 44:].any() and not large.label[:, :, 52:].any()
    (few_totals,), (many_totals,) = few.totals, many.totals
    assert few_totals.voxels.sum() > 0
    for a, b in zip(jax.tree.leaves(few_totals._replace(runs=0)), jax.tree.leaves(many_totals._replace(runs=0))):
        np.testing.assert_array_equal(a, b)
    for name in ("voxels", "sum_hu", "centroid", "touches_border"):
        np.testing.assert_array_equal(getattr(few.lesions, name), getattr(many.lesions, name))


def test_one_program_without_callback(state):
    find, case, reading, how = make(*scan(0))
    jaxpr = str(jax.make_jaxpr(program.detect_and_score, static_argnums=(0, 4))(find, state, case, reading, how))
    assert jaxpr.count("name=detect_and_score") == 1 and "callback" not in jaxpr
    compiled = program.detect_and_score.lower(find, state, case, reading, how).compile().as_text()
    assert compiled.count("\nENTRY ") == 1
    assert not any(word in compiled for word in ("callback", "infeed", "outfeed", "send(", "recv("))


def test_a_second_scan_of_the_bucket_compiles_nothing_and_moves_only_scan_and_result(state):
    find, case, reading, how = make(*scan(0))
    jax.block_until_ready(program.detect_and_score(find, state, *jax.device_put((case, reading)), how))
    # Another matrix, number of slices, spacing, threshold and heart.
    _, second, other, same = make(*scan(1, shape=(8, 46, 50), spacing_mm=(2.8, 0.72, 0.71)), threshold_hu=240.0)
    assert same == how and [leaf.shape for leaf in jax.tree.leaves(second)] == [leaf.shape for leaf in jax.tree.leaves(case)]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "compile" in name or "trac" in name else None
    )
    jax.jit(lambda a: a * 3 + len(compiled))(jnp.ones(5))
    assert any("compile" in name for name in compiled), "the listener must hear of compilations"
    compiled.clear()
    with jax.transfer_guard("disallow"):
        found = program.detect_and_score(find, state, *jax.device_put((second, other)), how)
        _, tables = jax.device_get(found)
    assert not compiled
    assert tables.totals[0].voxels.sum() > 0
    besides = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves((second._replace(hu=0, heart=0), other)))
    assert besides < 32 * 1024  # spacing, thresholds, the ball's rows, and where samples lie along each axis


def test_overflow_is_told_and_counted_again(state):
    find, case, reading, how = make(*scan(2), fp_reduction="none")
    _, full = jax.device_get(compute(state, find, case, reading, how))
    most = int(full.lesions.n.max())
    assert most > 2 and program.ample(full, how) is None
    tight = how._replace(capacity=2, buckets=(8,))
    _, small = jax.device_get(compute(state, find, case, reading, tight))
    assert small.totals[0].overflow and not small.scored.any() and not small.lesions.n.any()
    _, few = jax.device_get(compute(state, find, case, reading, how._replace(capacity=2)))
    assert few.lesions.overflow.any() and program.ample(few, how._replace(capacity=2)).capacity == how.capacity
    _, again, _ = program.compute(detector("none"), state, case, reading, tight, long=False)
    for a, b in zip(jax.tree.leaves(again.totals), jax.tree.leaves(full.totals)):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.lesions.voxels, full.lesions.voxels)
    np.testing.assert_array_equal(again.scored, full.scored)
    assert again.categories == full.categories


def test_in_steps_equals_one_program(state):
    _, case, reading, how = make(*scan(3))
    whole, steps = (program.compute(detector(), state, case, reading, how, long=long)[:2] for long in (False, True))
    for a, b in zip(
        jax.tree.leaves((whole[0]._replace(probability=0), whole[1])), jax.tree.leaves((steps[0]._replace(probability=0), steps[1]))
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(whole[0].probability, steps[0].probability, atol=1e-6)


def test_several_rules_read_one_mask(state):
    """Each as if it were alone, and the mask does not depend on any."""
    hu, heart, spacing_mm = scan(4)
    named = {name: rules.RULES[name] for name in ("default", "orcascore", "gogin")}
    finding, tables = compute(state, *make(hu, heart, spacing_mm, named_rules=named.items()))
    assert len({totals.weighted_px.sum().item() for totals in tables.totals}) > 1
    for i, each in enumerate(named.items()):
        alone, of_one = compute(state, *make(hu, heart, spacing_mm, named_rules=(each,)))
        np.testing.assert_array_equal(alone.label, finding.label)
        jax.tree.map(np.testing.assert_array_equal, of_one.totals[0], tables.totals[i])
        assert of_one.categories[0] == tables.categories[i]


def test_coronary_calcium_of_unknown_artery_and_a_map():
    """A system that answers class 7 on a grid of its own, with a map: one row, scores of its own HU, the map summed over the label."""

    def plan(shape, spacing_mm, affine, heart, threshold_hu, aorta_hu):
        return Plan((), (), shape=(2, 4, 5), spacing_mm=(3.0, 2.0, 2.0))

    def find(state, case, how):
        hu = jnp.full((2, 4, 5), 150.0).at[1, 2, 3].set(250.0)
        label = jnp.zeros((2, 4, 5), jnp.uint8).at[1, 2, 2:4].set(7)
        return Finding(label, hu, map=jnp.full((2, 4, 5), 12.5))

    hu, heart, spacing_mm = scan(0)
    finder = Detector(plan, find, (7,))
    finding, tables = compute((), *make(hu, heart, spacing_mm, finder=finder))
    totals = scores.by_artery(scores.from_totals(jax.device_get(tables.totals[0]), (3.0, 2.0, 2.0), RULE, 4.0), finder.classes)
    assert totals.names == ("CAC",) and totals.agatston.tolist() == [2 * 2 * 4.0] and totals.volume_mm3.tolist() == [24.0]
    assert scores.volume_sum(np.asarray(tables.map_hu), (3.0, 2.0, 2.0), finder.classes).tolist() == [2 * 12.5 * 12.0]
    assert int(tables.lesions.n[0]) == 1 and tables.lesions.low[0, 0].tolist() == [1, 2, 2]
    assert finding.hu.shape == (2, 4, 5)


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
    made = [make(*scan(10 + i), **options) for i in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *((case, reading) for _, case, reading, _ in made)), made


def test_vmap_equals_one_at_a_time(state):
    batch, made = stacked(2)
    find, _, _, how = made[0]
    together = jax.jit(jax.vmap(lambda case, reading: program.detect_and_score(find, state, case, reading, how)))(*batch)
    assert_equal_tables(together, state, made)


def assert_equal_tables(together, state, made):
    finding, tables = jax.device_get(together)
    for i, each in enumerate(made):
        alone, of_one = jax.device_get(compute(state, *each))
        assert of_one.totals[0].voxels.sum() > 0
        np.testing.assert_array_equal(finding.label[i], alone.label)
        for a, b in zip(jax.tree.leaves(tables), jax.tree.leaves(of_one)):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


def test_eight_devices_equal_one_at_a_time():
    """A batch shared out over eight simulated devices, in a process of its own."""
    tests = pathlib.Path(__file__).parent
    program = f"""
import sys
sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]
import cacjax, jax, test_program as t
from cacjax.scoring import program
state = t.state.__wrapped__() if hasattr(t.state, "__wrapped__") else t.state._get_wrapped_function()()
batch, made = t.stacked(8, fp_reduction="none")
find, _, _, how = made[0]
mesh = jax.make_mesh((8,), ("scans",), axis_types=(jax.sharding.AxisType.Auto,))
finding, tables = program.over_scans(find, how, mesh)(state, *batch)
assert len(finding.label.sharding.device_set) == 8
t.assert_equal_tables((finding, tables), state, made)
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
