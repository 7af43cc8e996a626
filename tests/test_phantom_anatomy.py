"""The phantom's anatomy: surfaces have the right volume, arteries lie on the heart, calcium weighs what its table says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax.phantom import calcium, layers
from cacjax.phantom.anatomy import sample_anatomy, sample_patient, stream
from cacjax.phantom.heart import great_vessels, heart_sdfs, sac_sdf
from cacjax.phantom.lumen import vessel_samples
from cacjax.phantom.surfaces import device, ellipsoid

SEEDS = (0, 1, 4)


@pytest.fixture(scope="module")
def patients():
    return {seed: sample_patient(seed, ("screening", "cardiac", "rtp")[seed % 3]) for seed in SEEDS}


def test_coverage_of_a_blurred_sphere_sums_to_its_volume():
    z, y, x = (np.arange(-16, 16, step, dtype=np.float32) for step in (2.0, 1.0, 1.0))
    p = (x[None, None, :], y[None, :, None], z[:, None, None])
    sphere = ellipsoid(p, np.array([0.3, -0.2, 0.1]), np.eye(3), np.array([10.0, 10.0, 10.0]))
    fields = layers.sharpen({"sphere": sphere}, (0.6, 0.9), 0.0)
    volume_mm3 = 2.0 * float(jnp.sum(layers.inside(fields, "sphere")))
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * 1000, rel=0.02)


def test_a_seed_is_one_patient(patients):
    again = sample_patient(1, "cardiac")
    for first, second in zip(jax.tree.leaves(patients[1]), jax.tree.leaves(again)):
        np.testing.assert_array_equal(first, second)
    assert sample_anatomy(1, "cardiac")["cav"][0] != sample_anatomy(2, "cardiac")["cav"][0]


def test_an_unknown_cohort_is_named():
    with pytest.raises(ValueError, match="screening, cardiac, angiography, rtp, got 'ct'"):
        sample_anatomy(0, "ct")


@jax.jit
def clearances(points, a):
    """Distances [n, 6] to lv, rv, ra, la, pulmonary trunk and pericardial sac."""
    p = tuple(points.T)
    chambers, vessels = heart_sdfs(p, a), great_vessels(p, a)
    sac = sac_sdf(p, a, chambers, vessels["root"])
    return jnp.stack([s[0] for s in [*(chambers[k] for k in ("lv", "rv", "ra", "la")), vessels["pa"], sac]], -1)


@pytest.mark.parametrize("seed", SEEDS)
def test_arteries_lie_on_the_heart_in_fat(patients, seed):
    anatomy, tree, *_ = patients[seed]
    arteries = [seg for seg in tree if seg["cls"] <= 3]
    assert {"LM", "LAD", "LCX", "RCA"} <= {seg["name"] for seg in arteries}
    for seg in arteries:
        points = np.resize(seg["c"], (400, 3)).astype(np.float32)
        d = np.asarray(clearances(points, device(anatomy)))[: len(seg["c"])]
        assert d[:, :5].min() > 0, "an artery runs through a chamber"
        assert np.median(d[:, :4].min(1)) < (4.0 if seg["name"] != "LM" else 25.0)
        assert d[:, 5].max() < (-1.0 if seg["name"] in ("LM", "LAD", "LCX", "RCA") else 2.0), "an artery runs through lung"
        assert 0.3 < seg["r"].min() <= seg["r"].max() < 3.2


@pytest.mark.parametrize("seed", SEEDS)
def test_blood_piles_up_nowhere(patients, seed):
    """No cell of 1.5 mm holds more lumen than itself (some sampling noise aside): piled-up blood would look like calcium."""
    samples = vessel_samples(patients[seed].tree, patients[seed].anatomy, max_step_mm=0.4)
    _, cell = np.unique(np.floor(samples["pos"] / 1.5).astype(int), axis=0, return_inverse=True)
    filled = np.bincount(cell.ravel(), samples["dV"] * samples["cl"]) / 1.5**3
    assert np.quantile(filled, 0.98) > 0.85 and filled.max() < 1.4


def test_lumen_samples_fill_the_vessels_once(patients):
    anatomy, tree, *_ = patients[1]
    samples = vessel_samples(tree, anatomy, max_step_mm=0.4)
    lumen_mm3 = sum(np.pi * np.trapezoid(seg["r"] ** 2, seg["s"]) for seg in tree if seg["cls"] <= 3)
    assert np.sum(samples["dV"] * samples["cl"]) == pytest.approx(lumen_mm3, rel=0.12)
    assert np.all(samples["co"] >= samples["cl"])


@pytest.mark.parametrize("seed", SEEDS)
def test_lesion_table_weighs_what_the_samples_weigh(patients, seed):
    samples = patients[seed].calcium
    lesions = samples["lesions"]
    assert [lesion["id"] for lesion in lesions] == list(range(len(lesions)))
    assert sum(lesion["mass_mg"] for lesion in lesions) == pytest.approx(np.sum(samples["dV"] * samples["c"]) / 1000)
    assert set(samples["lid"]) <= set(range(len(lesions)))
    assert all(lesions[i]["cls"] == k for i, k in set(zip(samples["lid"].tolist(), samples["cls"].tolist())))


def test_overlapping_nodules_never_exceed_the_space(patients):
    for patient in patients.values():
        samples = patient.calcium
        filled = np.bincount(calcium.cell_index(samples["pos"]), samples["dV"])
        assert filled.max(initial=0) <= calcium.CELL_MM**3 * (1 + 1e-9)
    crowded = calcium.cap_overlap(np.zeros((4, 3)), np.full(4, calcium.CELL_MM**3))
    np.testing.assert_allclose(crowded, calcium.CELL_MM**3 / 4)


def test_a_patient_without_calcium_has_empty_arrays():
    samples = sample_patient(5, "cardiac").calcium
    assert samples["sev"] is None and samples["lesions"] == []
    assert samples["pos"].shape == (0, 3) and samples["dV"].shape == samples["cls"].shape == (0,)


def test_zero_shares_differ_between_cohorts_as_intended():
    share = {}
    for cohort in calcium.ZERO_SHARE:
        ages = [sample_anatomy(seed, cohort)["age"] for seed in range(100)]
        streams = [stream(seed, 303) for seed in range(100)]
        scores = [calcium.sample_severity(age, calcium.ZERO_SHARE[cohort], g) for age, g in zip(ages, streams)]
        share[cohort] = np.mean([score is None for score in scores])
    assert share["screening"] < share["cardiac"] < share["rtp"]
    assert 0.05 < share["screening"] < 0.3 and 0.3 < share["rtp"] < 0.65
