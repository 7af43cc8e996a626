"""CT angiograms of the phantom: what makes them harder than a threshold, and that none of it is called coronary calcium."""

import jax
import numpy as np
import pytest

from cacjax.phantom import contrast, make_scan, metal, observer, streaks
from cacjax.phantom.acquisition import PROTOCOLS, calcium_samples, sample_protocol, sample_timing, share_above_lumen, simulate
from cacjax.phantom.anatomy import sample_anatomy, sample_patient, stream
from cacjax.phantom.chest import chest_surfaces
from cacjax.phantom.layers import STRUCTURES
from cacjax.phantom.motion import Timing
from cacjax.phantom.render import Grid, render
from cacjax.phantom.surfaces import device

COARSE = {"shape": (36, 56, 56), "spacing_mm": (4.0, 3.4, 3.4)}
GRID = Grid((36, 56, 56), (4.0, 3.4, 3.4), (-72.0, -124.0, -70.0))
IN_RIBS = 900009  # a patient of whose pericardium some surface lies in ribs


@pytest.fixture(scope="module")
def blood():
    """HU of the compartments in 200 patients."""
    return [contrast.enhanced(stream(seed, 707), 100) for seed in range(200)]


def test_each_compartment_has_its_own_timing(blood):
    ratio = np.array([[each[name] / each["art"] for name in contrast.AROUND_ROOT] for each in blood])
    assert np.abs(ratio - 1).max() < 0.1501 and (ratio.std(0) > 0.04).all()
    assert np.abs(np.corrcoef(ratio.T) - np.eye(4)).max() < 0.3
    assert all(set(each) == set(contrast.BLOOD) | {"myo", "mix", "streams"} for each in blood)
    assert all(each["right"] <= 0.9 * each["art"] and each["streams"] >= 0 for each in blood)
    assert 0.3 < np.mean([each["svc"] > 1.3 * each["art"] for each in blood]) < 0.8


def test_native_blood_is_one():
    native = contrast.native(sample_anatomy(1, "cardiac"))
    assert len({native[name] for name in contrast.BLOOD}) == 1 and native["mix"] == native["streams"] == 0


def test_the_lumen_brightens_along_some_arteries_and_noise_grows_below():
    drawn = [sample_protocol("ccta", {"bmi": 26.0}, seed) for seed in range(60)]
    assert 0.2 < np.mean([each.washout < 0 for each in drawn]) < 0.5
    assert all(0 <= each.noise_per_mm <= 0.003 and 0.8 <= each.hardening <= 1.8 for each in drawn)
    for kind in set(PROTOCOLS) - {"ccta"}:
        each = sample_protocol(kind, sample_anatomy(1, "cardiac"), 1)
        assert (each.washout, each.noise_per_mm, each.hardening) == (0, 0, 1)


def still(grid):
    """Nothing moves."""
    z, zero = grid.shape[0], np.zeros(3)
    return Timing(np.zeros(z), 0.0, 1e6, np.zeros((z, 3)), np.eye(3), zero, np.array([22.0, -30.0, 0.0]), (0.0, 4.0, 0.0), 0.0)


def test_compartments_are_painted_and_streams_are_threads_in_the_right_heart():
    anatomy = sample_patient(3, "angiography").anatomy
    own = dict.fromkeys(contrast.BLOOD, 400.0) | {"lv": 430.0, "la": 370.0, "ra": 200.0, "right": 250.0, "myo": 100.0, "mix": 0.0}
    images = [render(anatomy, GRID, still(GRID), own | {"streams": hu}, (0.5, 0.5), False) for hu in (0.0, 600.0)]
    structures, (plain, streamed) = images[0][2], (each[0] for each in images)
    for name, hu in (("lvc", 430), ("la", 370), ("ra", 200), ("rv", 250)):
        assert np.median(plain[structures == STRUCTURES[name]]) == pytest.approx(hu, abs=5)
    brighter = streamed - plain
    right = np.isin(structures, (STRUCTURES["ra"], STRUCTURES["rv"]))
    assert brighter.min() > -1e-3 and brighter[~right].max() < 60  # the blur of an edge
    share = (brighter[structures == STRUCTURES["ra"]] > 150).mean()
    assert 0.002 < share < 0.15 and 300 < brighter.max() <= 600


def test_streaks_fan_out_and_fade():
    grid, centres = Grid((3, 120, 120), (1.0, 1.0, 1.0), (-60.0, -60.0, 0.0)), np.zeros((3, 2))
    image = np.zeros(grid.shape, np.float32)
    streaks.add(image, grid, centres, [0.0, 40.0, 80.0], np.random.default_rng(0))
    assert not image[0].any()
    r = np.hypot(*np.meshgrid(grid.axis(1), grid.axis(2), indexing="ij"))
    near, far = (r > 9) & (r < 13), (r > 50) & (r < 56)
    for k, strength in ((1, 40), (2, 80)):
        assert image[k][near].std() == pytest.approx(strength * np.exp(-5 / streaks.REACH_MM), rel=0.2)
        assert abs(image[k][near].mean()) < 0.2 * strength and image[k][far].std() < 0.2 * strength
        assert image[k][r < 2.9].any() == 0  # none where they come from
    along, across = image[2, 60, 69:85], image[2, 45:75, 70]
    assert np.abs(np.diff(along)).mean() < 0.5 * np.abs(np.diff(across)).mean()


def test_dense_caval_blood_makes_streaks_down_to_the_atrium():
    anatomy, protocol = sample_anatomy(3, "angiography"), sample_protocol("ccta", {"bmi": 26.0}, 0)
    for svc, most in ((440.0, 0.0), (850.0, 40.0)):
        told = protocol._replace(blood=protocol.blood | {"svc": svc})
        centres, strength = streaks.of_caval_vein(anatomy, told, GRID, still(GRID))
        assert strength.max() == pytest.approx(most) and strength[0] == 0 and centres.shape == (36, 2)
        assert centres[-1, 0] < 0  # on the patient's right


@pytest.fixture(scope="module")
def equipped():
    """{kind: a patient who has this metal alone, and no calcium of the coronary arteries}."""
    found = {}
    for seed in range(2000):
        g = stream(seed, 808)
        kinds = [kind for kind, share in metal.SHARE.items() if g.random() < share]
        if len(kinds) == 1 and kinds[0] not in found:
            patient = sample_patient(seed, "angiography")
            if not (patient.calcium["cls"] <= 3).any():
                found[kinds[0]] = patient
        if len(found) == 3:
            return found
    raise AssertionError(f"only {list(found)}")


def test_metal_is_where_it_belongs(equipped):
    lead, clips, stent = (equipped[kind].metal for kind in ("lead", "clips", "stent"))
    assert 150 < lead["dV"].sum() < 500 and lead["streaks"].all()  # mm3
    right, vein = equipped["lead"].anatomy["rv"][:3], equipped["lead"].anatomy["svc"][0]
    assert all(np.linalg.norm(lead["pos"] - place, axis=1).min() < 3 for place in (right, vein))
    number = clips["dV"].sum() / np.prod(metal.CLIP_MM)
    assert number == pytest.approx(round(number)) and 3 <= round(number) <= 8 and clips["streaks"].all()
    assert not stent["streaks"].any()
    arteries = [seg for seg in equipped["stent"].tree if seg["name"] in metal.STENTED]
    beside = [np.linalg.norm(stent["pos"][:, None] - seg["c"], axis=-1).min(1) for seg in arteries]
    near = min(beside, key=np.mean)
    assert near.min() > 0.8 and near.max() < 2.6  # on the wall of one artery


def test_metal_is_bright_but_no_calcium(equipped):
    for kind, patient in equipped.items():
        protocol = sample_protocol("ccta", patient.anatomy, 1)
        grid = Grid((48, 72, 72), (3.0, 2.0, 2.0), (-58.0, -98.0, -72.0))
        timing = sample_timing(protocol, grid, (22.0, -30.0, 0.0), 1)
        scan, without = (simulate(who, protocol, grid, timing, 1) for who in (patient, patient._replace(metal=None)))
        assert (scan.clean - without.clean).max() > 300, kind
        threshold_hu = protocol.blood["art"] + 3 * protocol.noise_hu
        assert ((scan.hu > threshold_hu) & scan.heart).sum() > ((without.hu > threshold_hu) & without.heart).sum() + 5
        assert not np.isin(observer.mark(scan, threshold_hu, True), (1, 2, 3)).any()


def test_noise_is_louder_below_the_root():
    patient = sample_patient(2, "angiography")
    protocol = sample_protocol("ccta", patient.anatomy, 2)
    timing = sample_timing(protocol, GRID, (22.0, -30.0, 0.0), 2)
    even, falling = (simulate(patient, protocol._replace(noise_per_mm=each), GRID, timing, 2) for each in (0.0, 0.01))
    root_mm = 0.5 * (patient.anatomy["ao"][2, 2] + patient.anatomy["ao"][3, 2])
    np.testing.assert_array_equal(even.clean, falling.clean)
    for k in (0, 10, 35):
        louder = (falling.hu[k] - falling.clean[k]).std() / (even.hu[k] - even.clean[k]).std()
        assert louder == pytest.approx(1 + 0.01 * max(root_mm - GRID.axis(0)[k], 0), rel=0.02)


def test_calcium_replaces_the_blood_of_its_own_place():
    patient = sample_patient(11, "angiography")
    protocol, c = sample_protocol("ccta", patient.anatomy, 2)._replace(washout=0.0), patient.calcium
    timing = sample_timing(protocol, GRID, (22.0, -30.0, 0.0), 2)
    even, fading = (calcium_samples(patient, protocol._replace(washout=each), timing).amplitude for each in (0.0, 0.5))
    expected = np.where(c["rho"] < c["rl"], 0.5 * c["s"], 0.0) * c["dV"]  # by so much less blood is replaced
    assert expected.max() > 0
    np.testing.assert_allclose(fading - even, expected, atol=1e-3)


def test_how_much_calcium_is_brighter_than_its_lumen():
    patient = sample_patient(11, "angiography")
    protocol = sample_protocol("ccta", patient.anatomy, 2)._replace(kvp=120, washout=1.0)
    c = patient.calcium
    first = (c["cls"] <= 3) & (c["s"] > 30)
    for lumen_hu, expected in ((3000.0, 0.0), (-3000.0, 1.0)):
        told = protocol._replace(blood=protocol.blood | {"lumen": lumen_hu})
        assert share_above_lumen(patient, told) == expected
    flat = patient._replace(calcium=c | {"c": np.full(len(c["c"]), 300.0)})  # 435 HU
    share = share_above_lumen(flat, protocol._replace(blood=protocol.blood | {"lumen": 465.0}))  # 435 HU at 30 mm
    assert share == pytest.approx(c["dV"][first].sum() / c["dV"][c["cls"] <= 3].sum()) and 0 < share < 1
    assert share_above_lumen(sample_patient(5, "angiography"), protocol) is None


def test_the_pericardium_of_an_angiogram_holds_no_rib():
    ribs = jax.jit(lambda p, a: [chest_surfaces(p, a, np.zeros((p[0].shape[0], 1, 1), np.float32))[k][0] for k in ("rib", "sternum")])
    held = {}
    for protocol in ("ccta", "cardiac"):
        scan = make_scan(protocol, IN_RIBS, **COARSE)
        index = np.stack([*np.indices(scan.heart.shape), np.ones(scan.heart.shape)])
        points = np.einsum("ab,bkij->akij", scan.affine[:3], index).astype(np.float32)
        distances = ribs(tuple(points), device(sample_anatomy(IN_RIBS, "cardiac")))
        held[protocol] = sum(int((scan.heart & (np.asarray(each) < 0)).sum()) for each in distances)
        assert scan.heart.sum() > 5000
    assert held["ccta"] == 0 < held["cardiac"]  # there the mask is as it was, since committed results depend on it
