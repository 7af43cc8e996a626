"""Sampling and the loader: strata, cuts, bins, resuming, sharding, members, swapping, augmentation."""

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest

from cacjax import classes, train
from cacjax.classes import CALCIUM_HU
from cacjax.data import augment, sampling, scans, tones
from cacjax.data import loader as data
from cacjax.data.sampling import PLANES, Cut, StreamSpec

SHAPE = (9, 14, 17)  # unequal sides
ZHAI = (("bright_in_slice", 0.5), ("anywhere_in_slice", 0.5))
BALANCED = (("bright_in_slice", 0.125), ("anywhere_in_slice", 0.375), ("calcium_in_slice", 0.5))


def patch(n: int, margin: int, *, slab: int = 1, planes=("axial",)) -> Cut:
    """A cut of square patches of n pixels."""
    return Cut((slab, n, n), (0, margin, margin), planes)


POINT = patch(1, 0)


def record(i: int, shape=SHAPE, calcium: bool = True) -> dict:
    """A scan of distinct values below 130 HU with one bright block, one coronary and one valve lesion."""
    rng = np.random.default_rng(i)
    hu = rng.integers(-900, 100, shape).astype(np.int16)
    label, heart = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    heart[2:5, 6:9, 6:10] = 1
    hu[0, :2, :2] = 300
    if calcium:
        label[3, 7, 6:10], label[6, 7, 6:8] = 2, 5
        hu[label > 0] = 400 + i
    detected = np.flatnonzero(hu >= 130)[1:]
    return {"id": f"scan{i}".encode(), "hu": hu, "label": label, "heart": heart, "detected": detected}


@pytest.fixture(scope="module")
def sources():
    return {"source": [record(i) for i in range(7)], "target": [record(i, calcium=False) for i in range(10, 14)]}


def take(sources, streams, n, **options):
    loader = data.make_loader(sources, streams, **{"seed": 3, "num_threads": 0, **options})
    batches = list(itertools.islice(loader, n))
    loader.close()
    return batches


def equal(a, b) -> bool:
    return all(np.array_equal(x[s][k], y[s][k]) for x, y in zip(a, b, strict=True) for s in x for k in x[s])


def test_heart_box_has_a_margin_and_stays_in_the_scan():
    np.testing.assert_array_equal(scans.heart_box(record(0)["heart"]), [(0, 0, 0), (7, 14, 16)])
    np.testing.assert_array_equal(scans.heart_box(np.zeros(SHAPE, np.uint8)), [(0, 0, 0), SHAPE])


def test_index_lists_the_voxels_of_every_stratum():
    scan, raw = scans.index_scan(record(0)), record(0)
    np.testing.assert_array_equal(scan.voxels["bright"], np.flatnonzero(raw["hu"] >= 130))
    np.testing.assert_array_equal(scan.voxels["coronary"], np.flatnonzero(raw["label"] == 2))
    np.testing.assert_array_equal(np.diff(scan.starts["calcium"]), (raw["label"] > 0).sum((1, 2)))


@pytest.mark.parametrize("stratum", sampling.SCAN_STRATA + sampling.SLICE_STRATA)
def test_points_lie_in_their_stratum(sources, stratum):
    several, rng = [scans.index_scan(r) for r in sources["source"][:3]], np.random.default_rng(0)
    (low, high), bright = several[0].box, CALCIUM_HU
    holds = {
        "coronary": lambda s, p: s.label[p] in (1, 2, 3),
        "calcium": lambda s, p: s.label[p] > 0,
        "other_calcium": lambda s, p: s.label[p] in (4, 5, 6),
        "calcium_in_slice": lambda s, p: s.label[p] == 2,  # the valve's slice has two voxels: fewer than three
        "bright": lambda s, p: s.hu[p] >= bright,
        "bright_negative": lambda s, p: s.hu[p] >= bright and s.label[p] == 0,
        "detected_negative": lambda s, p: s.hu[p] >= bright and s.label[p] == 0 and p != (0, 0, 0),
        "bright_in_slice": lambda s, p: s.hu[p] >= bright,
        "bright_in_heart": lambda s, p: s.hu[p] >= bright and (low <= p).all() and (p < high).all(),
        "heart_box": lambda s, p: (low <= p).all() and (p < high).all(),
        "calcium_slice": lambda s, p: p == (3, 7, 8),  # the coronary lesion's slice, not the valve's
        "clean_slice": lambda s, p: p[0] not in (3, 6) and p[1:] == (7, 8),
        "whole_scan": lambda s, p: p == (4, 7, 8),
    }.get(stratum, lambda s, p: (np.array(p) < SHAPE).all())
    for _ in range(40):
        if stratum in sampling.SLICE_STRATA:
            found = sampling.point_in_slices(stratum, several, rng)
            if stratum == "large_calcium_slice":
                assert found is None  # no slice has 10 voxels of coronary calcium
                continue
            scan, point = found
        else:
            scan, point = several[0], sampling.point_in_scan(stratum, several[0], rng)
        assert holds(scan, point), (stratum, point)


def test_slices_lie_about_the_heart_and_carry_it():
    raw = record(0)
    raw["heart"] = np.zeros(SHAPE, np.uint8)
    raw["heart"][2:5, 8:13, 3:6] = 1
    raw["label"][3, 2:6, 2:6] = 1
    scan, rng = scans.index_scan(raw), np.random.default_rng(0)
    assert scan.centre == (10, 4)
    assert sampling.point_in_slices("large_calcium_slice", [scan], rng)[1] == (3, 10, 4)
    spec = StreamSpec(("source",), sampling.Cut((1, 5, 5)), (("clean_slice", 1.0),), heart=True)
    sample = sampling.cut_sample(scan, (3, 10, 4), spec)
    np.testing.assert_array_equal(sample["heart"], raw["heart"][3:4, 8:13, 2:7])
    assert sampling.sample_shapes(spec) == {"hu": (1, 5, 5), "label": (1, 5, 5), "heart": (1, 5, 5)}
    assert "heart" not in sampling.sample_shapes(spec._replace(heart=False))


def test_slices_are_drawn_before_voxels():
    raw = record(0)
    raw["hu"][8] = 500  # 238 bright voxels in this slice, 2 to 4 in three others: each slice must get a quarter
    rng = np.random.default_rng(0)
    z = [sampling.point_in_slices("bright_in_slice", [scans.index_scan(raw)], rng)[1][0] for _ in range(800)]
    np.testing.assert_allclose(np.bincount(z, minlength=9)[[0, 3, 6, 8]] / 800, 0.25, atol=0.05)


def test_shares_are_exact_by_position_in_the_minibatch():
    names = [sampling.stratum_of((i + u) / 16, BALANCED) for u in (0.0, 0.999) for i in range(16)]
    assert names == 2 * (2 * ["bright_in_slice"] + 6 * ["anywhere_in_slice"] + 8 * ["calcium_in_slice"])
    quarter = [sampling.stratum_of((1 + u) / 4, StreamSpec((), POINT).strata) for u in np.linspace(0, 0.999, 100)]
    assert quarter.count("coronary") == 60 and quarter.count("calcium") == 40  # the second of 4 spans .25 to .5


def test_batches_have_exact_shares(sources):
    spec = StreamSpec(("source",), patch(3, 1), BALANCED)
    (batch,) = take(sources, {"s": (spec, (5, 16))}, 1)
    centre = batch["s"]["label"][:, :, 0, 1, 1]
    assert batch["s"]["hu"].shape == (5, 16, 1, 5, 5, 1) and batch["s"]["label"].dtype == np.uint8
    assert (centre[:, 8:] == 2).all()
    assert (batch["s"]["hu"][:, :2, 0, 2, 2, 0] >= 130).all()


@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("point", [(4, 7, 8), (0, 0, 0), (8, 13, 16), (1, 12, 3)])
def test_patches_equal_slices_of_the_padded_scan(n, point):
    scan, half, pad = scans.index_scan(record(1)), (n + 6) // 2, 20
    sample = sampling.cut_sample(scan, point, StreamSpec((), patch(n, 3, planes=PLANES)))
    hu = np.pad(scan.hu, pad, constant_values=-32768)
    label = np.pad(scan.label, pad)
    for i, (fixed, rows, cols) in enumerate([(0, 1, 2), (1, 0, 2), (2, 0, 1)]):  # axial, coronal, sagittal
        index = [0, 0, 0]
        index[fixed] = point[fixed] + pad
        for axis in (rows, cols):
            index[axis] = slice(point[axis] + pad - half, point[axis] + pad - half + n + 6)
        np.testing.assert_array_equal(sample["hu"][i, :, :, 0], hu[tuple(index)])
        np.testing.assert_array_equal(sample["label"][i], label[tuple(index)][3:-3, 3:-3])
        assert sample["hu"][i, half, half, 0] == scan.hu[point]


def test_slab_holds_the_neighbouring_slices():
    scan = scans.index_scan(record(2))
    hu = sampling.cut_sample(scan, (0, 7, 8), StreamSpec((), patch(3, 1, slab=3)))["hu"]
    assert hu.shape == (1, 5, 5, 3) and (hu[..., 0] == -32768).all()
    np.testing.assert_array_equal(hu[0, :, :, 1:], np.moveaxis(scan.hu[:2, 5:10, 6:11], 0, -1))


def test_blocks_stay_in_the_scan_and_repeat_its_edge_where_it_is_smaller():
    volume = np.arange(4 * 9).reshape(4, 9, 1)
    cube = sampling.cut_block(volume, (0, 8, 0), (5, 5, 5))
    np.testing.assert_array_equal(cube[:, :, 0], np.concatenate([volume[:, 4:, 0], volume[3:, 4:, 0]]))
    assert (cube == cube[:, :, :1]).all()
    np.testing.assert_array_equal(sampling.cut_block(volume, (2, 4, 0), (1, 9, 1))[0, :, 0], np.arange(18, 27))


def test_a_margin_shows_more_of_the_scan_and_air_beyond_it():
    """The block lies where it lies without a margin: at the end of the row, and in a row shorter than itself at its begin."""
    row = np.arange(9)[None, None]
    np.testing.assert_array_equal(sampling.cut_block(row, (0, 0, 8), (1, 1, 4), (0, 0, 2))[0, 0], [3, 4, 5, 6, 7, 8, -1000, -1000])
    np.testing.assert_array_equal(sampling.cut_block(row, (0, 0, 1), (1, 1, 4), (0, 0, 1))[0, 0], [-1000, 0, 1, 2, 3, 4])
    short = row[:, :, :2]
    np.testing.assert_array_equal(sampling.cut_block(short, (0, 0, 1), (1, 1, 3), (0, 0, 2))[0, 0], [-1000] * 2 + [0, 1, 1] + [-1000] * 2)


def test_a_slice_with_a_margin_has_its_label_in_the_middle():
    scan = scans.index_scan(record(1))
    spec = StreamSpec((), Cut((1, 6, 6), (1, 2, 3)))
    sample = sampling.cut_sample(scan, (3, 7, 8), spec)
    assert {part: array.shape for part, array in sample.items()} == sampling.sample_shapes(spec) == {"hu": (3, 10, 12), "label": (1, 6, 6)}
    np.testing.assert_array_equal(sample["hu"], scan.hu[2:5, 2:12, 2:14])
    np.testing.assert_array_equal(sample["label"], scan.label[3:4, 4:10, 5:11])
    assert (sample["label"] == 2).any() and (sample["hu"].dtype, sample["label"].dtype) == (np.int16, np.uint8)


def test_batches_of_cubes(sources):
    """Voxels and labels of one place, drawn from the stratum; a scan larger than the cube is cut, not padded."""
    spec = StreamSpec(("source",), Cut((5, 5, 5)), (("coronary", 1.0),))
    (batch,) = take(sources, {"s": (spec, (2, 6))}, 1)
    hu, label = batch["s"]["hu"], batch["s"]["label"]
    assert hu.shape == label.shape == (2, 6, 5, 5, 5) and (hu.dtype, label.dtype) == (np.int16, np.uint8)
    assert (label == 2).any((2, 3, 4)).all() and ((hu >= 400) == (label > 0)).all()
    (bare,) = take(sources, {"s": (spec._replace(labelled=False, strata=(("anywhere", 1.0),)), (2, 6))}, 1)
    assert set(bare["s"]) == {"hu"}


def test_samples_do_not_alias_the_scan_in_memory(sources):
    spec = StreamSpec(("source",), patch(3, 1), (("anywhere", 1.0),))
    both = {"s": (spec, (1, 1)), "block": (spec._replace(cut=Cut(SHAPE)), (1, 1))}
    (batch,) = take(sources, both, 1)
    assert not any(np.shares_memory(batch[name]["hu"], r["hu"]) for r in sources["source"] for name in both)


def streams():
    tri = StreamSpec(("target",), patch(3, 2, planes=PLANES), ZHAI, labelled=False, scans_in_memory=2)
    often = StreamSpec(("source",), POINT, augment=(("tone_lift", 0.5), ("tone", 0.3)), swap_every=2)
    slab = often._replace(cut=patch(4, 1, slab=3), jitter_px=2, scans_in_memory=3)
    cube = often._replace(cut=Cut((5, 5, 5), (1, 0, 2)), jitter_px=1, scans_in_memory=2)
    return {"source": (slab, (2, 4)), "target": (tri._replace(swap_every=3), (3, 2, 2)), "cube": (cube, (4,))}


@pytest.mark.parametrize("num_threads", [0, 4])
def test_resumed_loader_equals_the_unbroken_one(sources, num_threads):
    whole = take(sources, streams(), 8)
    assert equal(whole[5:], take(sources, streams(), 3, step=5, num_threads=num_threads))
    assert not equal(whole[:3], whole[5:]) and not equal(whole[:3], take(sources, streams(), 3, seed=4))


def test_unlabelled_streams_carry_no_labels(sources):
    (batch,) = take(sources, streams(), 1)
    assert set(batch["target"]) == {"hu"} and batch["target"]["hu"].shape == (3, 2, 2, 3, 7, 7, 1)


def test_two_processes_get_the_rows_of_one(sources):
    whole = take(sources, streams(), 3)
    halves = [take(sources, streams(), 3, process_index=p, process_count=2) for p in (0, 1)]
    for step, (a, b) in enumerate(zip(*halves)):
        for name, axis in (("source", 1), ("target", 2), ("cube", 0)):
            for key in whole[step][name]:
                both = np.concatenate([a[name][key], b[name][key]], axis)
                np.testing.assert_array_equal(both, whole[step][name][key])


def test_scans_in_memory_follow_from_the_step(sources):
    groups = [scans.scans_of_period(t, total=7, in_memory=3, seed=1, tag="source") for t in range(40)]
    for a, b in zip(groups[::2], groups[1::2]):
        assert len(set(a) | set(b)) == 6  # within a pass no scan comes twice
    assert set(itertools.chain(*groups)) == set(range(7))
    spec = StreamSpec(("source",), POINT, scans_in_memory=3, swap_every=2)
    sampler = data.Sampler(spec, (4,), scans.ScanCache(sources, 9), seed=1)
    assert [sampler.in_memory(step) for step in range(6)] == [groups[step // 2] for step in range(6)]


def test_samples_come_from_the_scans_in_memory(sources):
    spec = StreamSpec(("source",), POINT, (("coronary", 1.0),), scans_in_memory=2, swap_every=1)
    sampler = data.Sampler(spec, (32,), scans.ScanCache(sources, 9), seed=3)
    for step, batch in enumerate(take(sources, {"s": (spec, (32,))}, 6)):
        assert set(np.unique(batch["s"]["hu"]) - 400) == set(sampler.in_memory(step))


def test_slices_of_the_scans_in_memory_are_looked_up_once(sources, monkeypatch):
    spec = StreamSpec(("source",), POINT, (("calcium_in_slice", 0.5), ("bright_in_slice", 0.5)), bins=3)
    sampler = data.Sampler(spec, (8,), scans.ScanCache(sources, 9), seed=3)
    everything = [sampler._scan(i) for i in range(7)]
    for index in range(40):  # the same samples as drawn from all scans each time
        rng, sample = np.random.default_rng(index), sampler(index, np.random.default_rng(index))
        stratum = sampling.stratum_of((index % 8 + rng.random()) / 8, spec.strata)
        scan, point = sampling.point_in_slices(stratum, everything, rng, sampler._bin(index // 8, index % 8))
        cut = sampling.cut_sample(scan, point, spec)
        assert all(np.array_equal(sample[part], cut[part]) for part in cut)
    asked = []
    monkeypatch.setattr(sampling, "slices_of", lambda *given: asked.append(given))
    for index in range(40):
        sampler(index, np.random.default_rng(index))
    assert not asked


def test_a_stratum_missing_in_memory_is_drawn_from_the_other_scans():
    mixed = {"all": [record(i, calcium=i == 5) for i in range(6)]}
    spec = StreamSpec(("all",), POINT, (("calcium_in_slice", 0.5), ("coronary", 0.5)), scans_in_memory=1)
    (batch,) = take(mixed, {"s": (spec, (8,))}, 1)
    assert (batch["s"]["hu"] == 405).all()
    with pytest.raises(ValueError, match="no scan of splits"):
        take({"all": mixed["all"][:5]}, {"s": (spec, (8,))}, 1)


def test_cache_decodes_each_scan_once_and_forgets_the_oldest():
    class Counting(list):
        reads = ()

        def __getitem__(self, i):
            self.reads += (i,)
            return super().__getitem__(i)

    source = Counting([record(i) for i in range(4)])
    cache = scans.ScanCache({"s": source}, 2)
    for i in (0, 1, 0, 2, 0, 1):
        cache.get("s", i, labelled=True)
    assert source.reads == (0, 1, 2, 1)


def test_labels_asked_of_a_scan_without_mask_are_an_error(sources):
    bare = {"s": [{**sources["source"][0], "labelled": False}]}
    with pytest.raises(ValueError, match="scan scan0 of split 's' has no mask"):
        take(bare, {"s": (StreamSpec(("s",), POINT, (("anywhere", 1.0),)), (1,))}, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strata": (("brigth", 1.0),)}, "unknown stratum 'brigth'"),
        ({"strata": (("bright", 0.6),)}, "must add up to 1"),
        ({"labelled": False}, "needs labels"),
        ({"cut": patch(3, 1, slab=2)}, "slab must be odd"),
        ({"cut": patch(3, 1, slab=3, planes=PLANES)}, "slab must be odd, and 1 unless"),
        ({"cut": patch(3, 1, planes=("oblique",))}, "planes must be among"),
        ({"cut": Cut((1, 3, 4), planes=("axial",))}, "patches must be square"),
        ({"cut": Cut((1, 3, 3), (1, 2, 2), ("axial",))}, "patches must be square"),
        ({"cut": Cut((0, 3, 3))}, "size must be positive"),
        ({"bins": 4}, "bins and pairs of one scan need strata among"),
        ({"augment": (("rotat_15", 0.5),)}, "unknown augmentation 'rotat_15', expected one of tone, tone_lift"),
        ({"axes": ("model", "data")}, "axes must name a mesh axis for each number of count"),
        ({"splits": ("nowhere",)}, "no split 'nowhere' among"),
    ],
)
def test_mistakes_in_a_specification_are_named(sources, change, message):
    with pytest.raises(ValueError, match=message):
        data.make_loader(sources, {"s": (StreamSpec(("source",), POINT)._replace(**change), (2,))}, seed=0)


def test_an_undivisible_batch_is_named(sources):
    with pytest.raises(ValueError, match="multiple of 2 processes"):
        data.make_loader(sources, {"s": (StreamSpec(("source",), POINT), (2, 3))}, seed=0, process_count=2)


def test_tones_leave_what_is_outside_of_the_scan():
    hu = np.full((1, 6, 6, 1), 40, np.int16)
    hu[0, :, :2], rng, inner = classes.OUTSIDE_HU, np.random.default_rng(0), []
    for _ in range(40):
        toned = augment.tone({"hu": hu}, rng, lift=True)["hu"]
        assert toned.dtype == np.int16 and (toned[0, :, :2] == classes.OUTSIDE_HU).all()
        inner.append(toned[0, :, 2:])
    assert np.min(inner) > -1100 and np.std(inner) > 10


@pytest.mark.parametrize("lift", [True, False])
def test_tone_curves_rise_and_keep_fat(lift):
    rng, rises = np.random.default_rng(0), []
    for _ in range(200):
        values = tones.curve(rng, lift=lift)
        assert (np.diff(values) > 0).all()
        np.testing.assert_allclose(np.interp(-100, tones.KNOTS, values), -100, atol=1e-9)
        rises.append(np.interp(60, tones.KNOTS, values) - values[3])
    lifted = np.mean(np.array(rises) > 150)
    assert 0.4 < lifted < 0.7 if lift else lifted < 0.02


@pytest.mark.parametrize("hu", [record(0)["hu"][None, 0, :, :, None], record(0)["hu"][:3]], ids=["patch", "cube"])
def test_tone_augmentation_leaves_a_quarter_alone(hu):
    rng = np.random.default_rng(0)
    toned = [tones.change(hu, rng, lift=True) for _ in range(400)]
    assert all(t.shape == hu.shape and t.dtype == np.float32 for t in toned)
    assert 0.18 < np.mean([np.array_equal(t, hu) for t in toned]) < 0.32


def test_augmentations_follow_each_other_with_their_chances(sources, monkeypatch):
    monkeypatch.setitem(augment.AUGMENTATIONS, "double", lambda sample, rng: sample | {"hu": sample["hu"] * 2})
    monkeypatch.setitem(augment.AUGMENTATIONS, "one_more", lambda sample, rng: sample | {"hu": sample["hu"] + 1})
    spec = StreamSpec(("source",), POINT, (("coronary", 1.0),), augment=(("double", 0.25), ("one_more", 1.0)))
    plain, changed = (take(sources, {"s": (s, (400,))}, 1)[0]["s"] for s in (spec._replace(augment=()), spec))
    doubled = changed["hu"] == 2 * plain["hu"] + 1
    assert (doubled | (changed["hu"] == plain["hu"] + 1)).all() and 0.18 < doubled.mean() < 0.32
    np.testing.assert_array_equal(changed["label"], plain["label"])


@pytest.mark.parametrize("name", ["tone", "tone_lift", "noise"])
def test_tones_change_intensities_only(name):
    sample = {"hu": record(0)["hu"], "label": record(0)["label"]}
    changed = [augment.AUGMENTATIONS[name](sample, np.random.default_rng(seed)) for seed in range(8)]
    assert all(c["hu"].dtype == np.int16 and c["label"] is sample["label"] for c in changed)
    assert sum((c["hu"] != sample["hu"]).any() for c in changed) >= 1


def test_a_shift_moves_a_block_and_its_labels_alike():
    block = np.arange(6 * 12 * 12, dtype=np.int16).reshape(6, 12, 12)
    seen = set()
    for seed in range(40):
        moved = augment.shift({"hu": block, "label": (block % 251).astype(np.uint8)}, np.random.default_rng(seed))
        np.testing.assert_array_equal(moved["label"], moved["hu"] % 251)
        z, y, x = np.unravel_index(moved["hu"][3, 6, 6], block.shape)
        seen.add((3 - z, 6 - y, 6 - x))
        rows = np.clip(np.arange(12) - (6 - y), 0, 11)
        np.testing.assert_array_equal(moved["hu"][3, :, 6] - moved["hu"][3, 6, 6], (rows - y) * 12)  # edges repeated
    assert len(seen) > 30 and np.abs(list(seen)).max() == augment.SHIFT


def test_members_take_every_scan_once_in_an_epoch_in_orders_of_their_own():
    turns = [[sampling.scan_in_turn(7, seed=3, member=m, number=n) for n in range(14)] for m in range(2)]
    for order in turns:
        assert sorted(order[:7]) == sorted(order[7:]) == list(range(7)) and order[:7] != order[7:]
    assert turns[0] != turns[1]
    sources = {"source": [record(i) for i in range(3)]}
    size = tuple(sources["source"][0]["hu"].shape)
    spec = StreamSpec(("source",), Cut(size), (("whole_scan", 1.0),), axes=("model", "data"))
    steps = [step["s"]["hu"] for step in take(sources, {"s": (spec, (2, 1))}, 3)]
    for member in range(2):
        drawn = [step[member, 0] for step in steps]
        assert all(any((hu == scan["hu"]).all() for hu in drawn) for scan in sources["source"])


def column(coronary=(), valve=(), heart=(0, 12)) -> dict:
    """A scan of 12 slices of one voxel whose HU is its slice, with calcium and a heart in given slices."""
    hu = np.arange(12, dtype=np.int16)[:, None, None]
    label, mask = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, np.uint8)
    label[list(coronary)], label[list(valve)], mask[slice(*heart)] = 1, 6, 1
    return {"id": "column", "hu": hu, "label": label, "heart": mask}


def test_bins_are_equal_parts_of_the_heart():
    inside = scans.index_scan(column(heart=(4, 8)))  # with two slices around it: 2 to 9
    np.testing.assert_array_equal(sampling.bin_of_slices(inside, 4), [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    np.testing.assert_array_equal(sampling.bin_of_slices(scans.index_scan(column(heart=(0, 0))), 3), np.repeat([0, 1, 2], 4))


@pytest.mark.parametrize(("chosen", "slices"), [(0, {2}), (1, {2, 6, 7}), (2, {6, 7}), (3, {6, 7})])
def test_a_bin_without_candidates_gives_way_to_the_nearest(chosen, slices):
    """Slices 0 and 11 have calcium, too, but lie outside of the heart's box, slices 2 to 9. Bin 1 has a neighbour on each side."""
    scan, rng = scans.index_scan(column((0, 2, 6, 7, 11), heart=(4, 8))), np.random.default_rng(0)
    drawn = [sampling.point_in_slices("calcium_slice", [scan], rng, (chosen, 4))[1][0] for _ in range(30)]
    assert set(drawn) == slices
    assert sampling.point_in_slices("calcium_slice", [scans.index_scan(column((0, 11), heart=(4, 8)))], rng, (chosen, 4)) is None


def test_halves_of_a_minibatch_and_streams_lie_at_one_height():
    """Two slices with calcium and two without: slice i of the first half is in the bin of slice i of the second, as in other streams."""
    calcified = column(coronary=range(0, 12, 2), valve=(1,))  # every bin of two slices but the first has a clean one
    strata = (("calcium_slice", 0.5), ("clean_slice", 0.5))
    spec = StreamSpec(("a",), Cut((1, 1, 1)), strata, bins=6)
    other = spec._replace(splits=("b",), strata=(("anywhere_in_slice", 1.0),), labelled=False)
    batches = take({"a": [calcified], "b": [column()]}, {"a": (spec, (4,)), "b": (other, (4,))}, 60)
    source, target = (np.stack([batch[name]["hu"].ravel() for batch in batches]) for name in "ab")
    assert (source[:, :2] % 2 == 0).all() and (source[:, 2:] % 2 == 1).all() and (source[:, 2:] > 1).all()
    np.testing.assert_array_equal(np.maximum(source[:, :2] // 2, 1), source[:, 2:] // 2)
    np.testing.assert_array_equal(target[:, :2] // 2, target[:, 2:] // 2)
    np.testing.assert_array_equal(source[:, :2] // 2, target[:, :2] // 2)
    assert set(np.unique(source[:, :2] // 2)) == set(range(6)) and (source[:, 0] // 2 != source[:, 1] // 2).any()


def test_members_draw_scans_of_their_own():
    """Five members see the same scans in another order each; two processes get the rows of one."""
    sources = {"s": [record(i) for i in range(6)]}
    spec = StreamSpec(("s",), Cut((1, 1, 1)), (("coronary", 1.0),), axes=("model", "data"))
    whole = take(sources, {"s": (spec, (5, 2))}, 12)
    drawn = np.stack([batch["s"]["hu"].reshape(5, 2) - 400 for batch in whole], 1).reshape(5, -1)
    assert len({tuple(member) for member in drawn}) == 5 and all(set(member) == set(range(6)) for member in drawn)
    halves = [take(sources, {"s": (spec, (5, 2))}, 12, process_index=p, process_count=2) for p in (0, 1)]
    assert equal(whole, [{"s": {k: np.concatenate([a["s"][k], b["s"][k]], 1) for k in a["s"]}} for a, b in zip(*halves)])


def test_the_last_number_of_a_count_is_split_over_the_data_unless_the_stream_says_otherwise():
    spec = StreamSpec(("s",), POINT)
    assert sampling.mesh_axes(spec, (20, 16)) == ("", "data") and sampling.mesh_axes(spec, (4,)) == ("data",)
    assert sampling.mesh_axes(spec._replace(axes=("model", "data")), (5, 2)) == ("model", "data")


@pytest.mark.parametrize(("names", "expected"), [(("model", "data"), ("model", "data")), (("data",), (None, "data"))])
def test_axes_that_the_mesh_lacks_fall_away(names, expected):
    streams = {"source": (StreamSpec(("s",), POINT, axes=("model", "data")), (5, 2))}
    mesh = jax.make_mesh((1,) * len(names), names, devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * len(names))
    shardings = train.batch_shardings(streams, mesh)["source"]
    assert {part: s.spec for part, s in shardings.items()} == dict.fromkeys(("hu", "label"), jax.sharding.PartitionSpec(*expected))


WORKERS = """
import numpy as np
from test_data import equal, record, streams, take
if __name__ == "__main__":
    sources = {"source": [record(i) for i in range(7)], "target": [record(i, calcium=False) for i in range(10, 14)]}
    assert equal(take(sources, streams(), 3, step=2), take(sources, streams(), 3, step=2, num_workers=2))
    print("equal")
"""


def test_worker_processes_give_the_same_batches(tmp_path):
    (tmp_path / "main.py").write_text(f"import sys; sys.path[:0] = {sys.path!r}\n{WORKERS}")
    done = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "equal" and "Traceback" not in done.stderr, done.stderr
