"""The way from a scan to its calcium map and back, with networks that follow a rule: place, amount, gate, heart, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cacjax
from cacjax.files import volume
from cacjax.files.scan import Acquisition, Scan, ScanError
from cacjax.inference import removal
from cacjax.report import result
from cacjax.scoring import one_scan
from cacjax.task import Task
from cacjax.tasks import cyclegan as task
from cacjax.training.workdir import Run
from configs import cyclegan

FAT, BLOOD, CALCIUM = -100.0, 45.0, 345.0


def scan(*, spacing_mm=(3.0, 1.0, 1.0), shape=(10, 60, 64), calcium=True, cut=False):
    """A heart of blood in fat with a bar of calcium in it, and its truth: (Scan, heart, calcium HU)."""
    hu, heart, extra = np.full(shape, FAT, np.float32), np.zeros(shape, bool), np.zeros(shape, np.float32)
    heart[(0 if cut else 2) : -2, 14:44, 20:52] = True
    hu[heart] = BLOOD
    if calcium:
        extra[4:6, 24:28, 30:36] = CALCIUM - BLOOD
    return Scan(hu + extra, affine(spacing_mm), Acquisition(), "scan"), heart, extra


def affine(spacing_mm):
    found = np.zeros((4, 4))
    found[[2, 1, 0], [0, 1, 2]], found[3, 3] = spacing_mm, 1
    return found


def run_of(**scoring):
    """A run whose heart is what is not fat, whose generator takes what is above blood, whose gate is a pixel of 300 HU."""
    config = cyclegan.get_config("test").copy_and_resolve_references().unlock()
    gate = {"gate": "classifier", "least_probability": 0.5}
    config.scoring.update({"window": 40, "wide": 60, "check_heart": False, "floor_hu": None} | gate | scoring)
    config.data.grid.spacing_mm = (1.5, 1.0, 1.0)
    heart_config = config.stages.slices.stages.heart
    heart_config.data.grid.spacing_mm = (3.0, 2.0, 2.0)
    heart_config.window = {"window": 16, "overlap": 8}
    parts = removal.Parts(
        lambda state, hu: jax.nn.softmax(jnp.stack([jnp.zeros(hu.shape), (hu + 40.0) / 10], -1)),
        lambda state, hu, heart: (hu[..., 1] > 300).any((1, 2)).astype(jnp.float32),
        1,
        lambda state, hu, heart: jnp.clip(hu - BLOOD, 0, None),
    )
    found = removal.detector(config, heart_config, parts)._replace(check=functools.partial(task.check, config.scoring))
    return Run(config, Task(None, None, None, detector=found), ())


def test_map_is_the_calcium_on_the_scans_own_pixels():
    image, _, extra = scan()
    result = one_scan.score(image, detector=run_of())
    assert result.answer.hu.shape == (19, 60, 64) and result.record["answer"]["spacing_mm"] == [1.5, 1.0, 1.0]
    np.testing.assert_allclose(result.map[::2], extra, atol=0.1)  # every second slab is a slice
    np.testing.assert_allclose(result.map[9], (extra[4] + extra[5]) / 2, atol=0.1)
    np.testing.assert_allclose(result.answer.hu[::2], image.hu, atol=1e-3)
    row = next(row for row in result.rows if row["artery"] == "CAC")
    assert row["map_hu_mm3"] == pytest.approx(result.map.sum() * 1.5, rel=1e-4)
    assert row["pseudo_mass"] == pytest.approx((result.answer.hu * (result.mask > 0)).sum() * 1.5, rel=1e-4)
    assert result.record["counts"]["slices_kept"] == 3


@pytest.mark.parametrize("spacing_mm", [(2.5, 0.7, 0.7), (0.8, 1.3, 1.3), (5.0, 0.5, 0.5)])
def test_any_grid_keeps_place_and_amount(spacing_mm):
    shape = tuple(int(extent / mm) for extent, mm in zip((36, 60, 64), spacing_mm))
    hu = np.full(shape, FAT, np.float32)
    z, y, x = (np.arange(n) * mm for n, mm in zip(shape, spacing_mm))
    inside = ((z > 6) & (z < 30))[:, None, None] & ((y > 10) & (y < 50))[:, None] & ((x > 12) & (x < 52))
    extra = np.where(((z > 14) & (z < 22))[:, None, None] & ((y > 20) & (y < 30))[:, None] & ((x > 24) & (x < 36)), 300.0, 0)
    hu[inside] = BLOOD
    result = one_scan.score(Scan(hu + extra.astype(np.float32), affine(spacing_mm), Acquisition(), "scan"), detector=run_of(gate="none"))
    step = result.record["answer"]["spacing_mm"]
    assert step[1:] == pytest.approx(spacing_mm[1:])
    mm3 = np.prod(spacing_mm) * extra.sum()
    assert next(row for row in result.rows if row["artery"] == "CAC")["map_hu_mm3"] == pytest.approx(mm3, rel=0.12)
    points = np.argwhere(result.map > 150)
    found = (points @ result.answer.affine[:3, :3].T + result.answer.affine[:3, 3]).mean(0)
    real = (np.argwhere(extra > 0) @ affine(spacing_mm)[:3, :3].T).mean(0)
    np.testing.assert_allclose(found, real, atol=0.8)


def test_heart_that_is_given_goes_before_the_network():
    image, heart, _ = scan()
    assert one_scan.score(image, detector=run_of(), heart=heart).map.max() == pytest.approx(CALCIUM - BLOOD, abs=0.1)
    elsewhere = np.roll(heart, 20, 1) & (np.arange(60) > 40)[:, None]
    assert one_scan.score(image, detector=run_of(check_heart=True), heart=elsewhere).map.max() == 0


def test_scan_without_calcium_scores_0():
    result = one_scan.score(scan(calcium=False)[0], detector=run_of())
    row = next(row for row in result.rows if row["artery"] == "CAC")
    assert (row["agatston"], row["map_hu_mm3"], row["category"]) == (0, 0, "I") and not result.mask.any()


def test_a_gate_sees_the_slices_beside():
    volume = jnp.arange(4.0)[:, None, None] * jnp.ones((1, 2, 3))
    seen = np.asarray(removal.with_neighbours(volume, 1))[:, 0, 0]
    np.testing.assert_array_equal(seen, [[-1000, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, -1000]])
    np.testing.assert_array_equal(removal.with_neighbours(volume, 0)[..., 0], volume)


def test_gate_and_floor():
    image = scan()[0]
    image.hu[5, 24:28, 30:36] = 250  # below what the gate asks for
    kept = one_scan.score(image, detector=run_of())
    assert kept.map[8].max() > 0 and kept.map[10].max() == 0
    assert one_scan.score(image, detector=run_of(gate="none")).map[10].max() > 0
    assert one_scan.score(image, detector=run_of(least_probability=1.1)).map.max() == 0
    by_map = one_scan.score(image, detector=run_of(gate="map", least_sum=24 * 250.0))  # of 24 mm² of 300 and of 205 HU
    assert by_map.map[8].max() > 0 and by_map.map[10].max() == 0
    image.hu[4, 24:28, 30:33] = 320  # twin of 45 HU either way: a floor above it takes all
    assert one_scan.score(image, detector=run_of(gate="none", floor_hu=50.0)).map.max() == 0


def test_calcium_that_adds_up_to_little_is_none():
    """Two bars, of 24 mm² in two slices and of 4 in one: 300 HU over 24 x 6 and over 4 x 3 mm³, which slabs between slices share."""
    image, _, extra = scan()
    image.hu[6, 16:18, 22:24] += CALCIUM - BLOOD
    both, one = (one_scan.score(image, detector=run_of(gate="none", least_lesion=least)).map for least in (0.0, 10_000.0))
    assert both[12, 16, 22] > 250 and one[12, 16, 22] == 0
    np.testing.assert_allclose(one[::2], extra, atol=0.1)
    assert one_scan.score(image, detector=run_of(gate="none", least_lesion=50_000.0)).map.max() == 0


def test_parts_of_a_map_stay_or_fall_as_a_whole():
    image = scan()[0]
    image.hu[5, 24:28, 30:36] = 250  # dimmer than what the gate asks for: it keeps a part of the bar
    everything, by_slice = (one_scan.score(image, detector=run_of(gate=gate)).map for gate in ("none", "classifier"))
    mean = float(by_slice.sum() / everything.sum())
    assert 0.1 < mean < 0.9
    for least, kept in ((mean - 0.05, everything), (mean + 0.05, 0 * everything)):
        found = one_scan.score(image, detector=run_of(gate="parts", least_probability=least))
        np.testing.assert_array_equal(found.map, kept)
        assert (found.record["counts"]["slices_kept"] > 0) == kept.any()


def test_without_a_heart_the_middle_of_the_scan_is_seen():
    result = one_scan.score(scan()[0], detector=run_of(heart=False))
    assert "heart_not_checked" in result.record["flags"]
    assert result.map.max() == pytest.approx(CALCIUM - BLOOD, abs=0.1) and result.record["counts"]["slices_with_heart"] == 19


def test_no_heart_is_refused_and_a_cut_one_flagged():
    """A block of blood of the size of a heart: refused in fat, scored between lungs; a mask that is given is not in question."""
    with pytest.raises(ScanError, match="volume 0 ml, expected 100 to 2500; lung beside it 0 %, expected 10 to 100") as refusal:
        score_block(np.full((8, 40, 40), FAT, np.float32))
    assert refusal.value.code == "no_heart"
    hu = np.full((36, 112, 112), FAT, np.float32)
    hu[3:-3, 21:91, 21:91] = BLOOD
    with pytest.raises(ScanError, match="no heart: lung beside it 0 %"):
        score_block(hu)
    assert "heart_not_checked" not in score_block(hu, heart=hu == BLOOD)
    hu[:, :, 93:] = -860.0
    assert score_block(hu) == []
    assert "heart_cut" in one_scan.score(scan(cut=True)[0], detector=run_of()).record["flags"]
    assert "heart_cut" not in one_scan.score(scan()[0], detector=run_of()).record["flags"]


def score_block(hu, **options):
    return one_scan.score(Scan(hu, affine((3, 1, 1)), Acquisition(), "scan"), detector=run_of(check_heart=True), **options).record["flags"]


def test_one_program_gives_what_steps_give():
    image, run = scan()[0], run_of()
    case, plan = one_scan.make_case(run.task.detector, image.hu, (3.0, 1.0, 1.0), image.affine, None, 130.0)
    stepped = run.task.detector.find((), case, plan.how)
    whole = jax.jit(run.task.detector.find, static_argnums=2)((), case, plan.how)
    for a, b in zip(jax.tree.leaves(stepped._replace(timings_s={})), jax.tree.leaves(whole)):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert cacjax  # the compiler options are set when it is imported


def test_files_of_a_map_add_up_to_the_scan(tmp_path):
    found = one_scan.score(scan()[0], detector=run_of())
    assert found.rows[0]["threshold_hu"] == -1024 and result.caption("one", found).endswith("scored by rule adjusted at any HU")
    with pytest.raises(ValueError, match="counts from -1024 HU in every scan"):
        one_scan.score(scan()[0], detector=run_of(), threshold_hu=200.0)
    (tmp_path / "bare").mkdir()
    result.write(found, tmp_path / "bare", "one", drawn=False)
    assert {path.suffix for path in (tmp_path / "bare").iterdir()} == {".gz"}
    masks = result.write(found, tmp_path, "one", save_probability=True)
    assert masks["map"] == "one_map.nii.gz" and (tmp_path / "one_twin.png").stat().st_size > 1000
    read = {name: volume.load(tmp_path / f"one_{name}.nii.gz")[0] for name in ("map", "twin", "mask", "probability")}
    np.testing.assert_allclose(read["map"] + read["twin"], found.answer.hu, atol=0.51)  # the twin in whole HU, as a CT
    np.testing.assert_array_equal(read["mask"] > 0, read["map"] > 0)
    assert read["probability"][8].min() == 1 and read["probability"][0].max() == 0  # of the slice
