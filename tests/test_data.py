"""Sampling and the loader: strata, patches, resuming, sharding, swapping, tone curves."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from cacjax.data import loader as data
from cacjax.data import sampling
from cacjax.data.sampling import StreamSpec

SHAPE = (9, 14, 17)  # unequal sides
ZHAI = (("bright_in_slice", 0.5), ("anywhere_in_slice", 0.5))
BALANCED = (("bright_in_slice", 0.125), ("anywhere_in_slice", 0.375), ("calcium_in_slice", 0.5))


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
    np.testing.assert_array_equal(sampling.heart_box(record(0)["heart"]), [(0, 0, 0), (7, 14, 16)])
    np.testing.assert_array_equal(sampling.heart_box(np.zeros(SHAPE, np.uint8)), [(0, 0, 0), SHAPE])


def test_index_lists_the_voxels_of_every_stratum():
    scan, raw = sampling.index_scan(record(0)), record(0)
    np.testing.assert_array_equal(scan.voxels["bright"], np.flatnonzero(raw["hu"] >= 130))
    np.testing.assert_array_equal(scan.voxels["coronary"], np.flatnonzero(raw["label"] == 2))
    np.testing.assert_array_equal(np.diff(scan.starts["calcium"]), (raw["label"] > 0).sum((1, 2)))


@pytest.mark.parametrize("stratum", sampling.SCAN_STRATA + sampling.SLICE_STRATA)
def test_points_lie_in_their_stratum(sources, stratum):
    scans, rng = [sampling.index_scan(r) for r in sources["source"][:3]], np.random.default_rng(0)
    (low, high), bright = scans[0].box, sampling.BRIGHT_HU
    holds = {
        "coronary": lambda s, p: s.label[p] in (1, 2, 3),
        "calcium": lambda s, p: s.label[p] > 0,
        "calcium_in_slice": lambda s, p: s.label[p] == 2,  # the valve's slice has two voxels: fewer than three
        "bright": lambda s, p: s.hu[p] >= bright,
        "bright_negative": lambda s, p: s.hu[p] >= bright and s.label[p] == 0,
        "detected_negative": lambda s, p: s.hu[p] >= bright and s.label[p] == 0 and p != (0, 0, 0),
        "bright_in_slice": lambda s, p: s.hu[p] >= bright,
        "bright_in_heart": lambda s, p: s.hu[p] >= bright and (low <= p).all() and (p < high).all(),
        "heart_box": lambda s, p: (low <= p).all() and (p < high).all(),
    }.get(stratum, lambda s, p: (np.array(p) < SHAPE).all())
    for _ in range(40):
        if stratum in sampling.SLICE_STRATA:
            scan, point = sampling.point_in_slices(stratum, scans, rng)
        else:
            scan, point = scans[0], sampling.point_in_scan(stratum, scans[0], rng)
        assert holds(scan, point), (stratum, point)


def test_slices_are_drawn_before_voxels():
    raw = record(0)
    raw["hu"][8] = 500  # 238 bright voxels in this slice, 2 to 4 in three others: each slice must get a quarter
    rng = np.random.default_rng(0)
    z = [sampling.point_in_slices("bright_in_slice", [sampling.index_scan(raw)], rng)[1][0] for _ in range(800)]
    np.testing.assert_allclose(np.bincount(z, minlength=9)[[0, 3, 6, 8]] / 800, 0.25, atol=0.05)


def test_shares_are_exact_by_position_in_the_minibatch():
    names = [sampling.stratum_of((i + u) / 16, BALANCED) for u in (0.0, 0.999) for i in range(16)]
    assert names == 2 * (2 * ["bright_in_slice"] + 6 * ["anywhere_in_slice"] + 8 * ["calcium_in_slice"])
    quarter = [sampling.stratum_of((1 + u) / 4, StreamSpec(()).strata) for u in np.linspace(0, 0.999, 100)]
    assert quarter.count("coronary") == 60 and quarter.count("calcium") == 40  # the second of 4 spans .25 to .5


def test_batches_have_exact_shares(sources):
    spec = StreamSpec(("source",), BALANCED, patch=3, margin=1)
    (batch,) = take(sources, {"s": (spec, (5, 16))}, 1)
    centre = batch["s"]["label"][:, :, 0, 1, 1]
    assert batch["s"]["hu"].shape == (5, 16, 1, 5, 5, 1) and batch["s"]["label"].dtype == np.uint8
    assert (centre[:, 8:] == 2).all()
    assert (batch["s"]["hu"][:, :2, 0, 2, 2, 0] >= 130).all()


@pytest.mark.parametrize("patch", [4, 5])
@pytest.mark.parametrize("point", [(4, 7, 8), (0, 0, 0), (8, 13, 16), (1, 12, 3)])
def test_patches_equal_slices_of_the_padded_scan(patch, point):
    scan, half, pad = sampling.index_scan(record(1)), (patch + 6) // 2, 20
    sample = sampling.cut_sample(scan, point, StreamSpec((), patch=patch, margin=3, planes=sampling.PLANES))
    hu = np.pad(scan.hu, pad, constant_values=-1000)
    label = np.pad(scan.label, pad)
    for i, (fixed, rows, cols) in enumerate([(0, 1, 2), (1, 0, 2), (2, 0, 1)]):  # axial, coronal, sagittal
        index = [0, 0, 0]
        index[fixed] = point[fixed] + pad
        for axis in (rows, cols):
            index[axis] = slice(point[axis] + pad - half, point[axis] + pad - half + patch + 6)
        np.testing.assert_array_equal(sample["hu"][i, :, :, 0], hu[tuple(index)])
        np.testing.assert_array_equal(sample["label"][i], label[tuple(index)][3:-3, 3:-3])
        assert sample["hu"][i, half, half, 0] == scan.hu[point]


def test_slab_holds_the_neighbouring_slices():
    scan = sampling.index_scan(record(2))
    hu = sampling.cut_sample(scan, (0, 7, 8), StreamSpec((), patch=3, margin=1, slab=3))["hu"]
    assert hu.shape == (1, 5, 5, 3) and (hu[..., 0] == -1000).all()
    np.testing.assert_array_equal(hu[0, :, :, 1:], np.moveaxis(scan.hu[:2, 5:10, 6:11], 0, -1))


def test_cubes_stay_in_the_scan_and_repeat_its_edge_where_it_is_smaller():
    volume = np.arange(4 * 9).reshape(4, 9, 1)
    cube = sampling.cut_cube(volume, (0, 8, 0), 5)
    np.testing.assert_array_equal(cube[:, :, 0], np.concatenate([volume[:, 4:, 0], volume[3:, 4:, 0]]))
    assert (cube == cube[:, :, :1]).all()


def test_batches_of_cubes(sources):
    """Voxels and labels of one place, drawn from the stratum; a scan larger than the cube is cut, not padded."""
    spec = StreamSpec(("source",), (("coronary", 1.0),), patch=5, margin=0, planes=())
    (batch,) = take(sources, {"s": (spec, (2, 6))}, 1)
    hu, label = batch["s"]["hu"], batch["s"]["label"]
    assert hu.shape == label.shape == (2, 6, 5, 5, 5) and (hu.dtype, label.dtype) == (np.int16, np.uint8)
    assert (label == 2).any((2, 3, 4)).all() and ((hu >= 400) == (label > 0)).all()
    (bare,) = take(sources, {"s": (spec._replace(labelled=False, strata=(("anywhere", 1.0),)), (2, 6))}, 1)
    assert set(bare["s"]) == {"hu"}


def test_samples_do_not_alias_the_scan_in_memory(sources):
    spec = StreamSpec(("source",), (("anywhere", 1.0),), patch=3, margin=1)
    (batch,) = take(sources, {"s": (spec, (1, 1))}, 1)
    assert not any(np.shares_memory(batch["s"]["hu"], r["hu"]) for r in sources["source"])


def streams():
    tri = StreamSpec(("target",), ZHAI, patch=3, margin=2, planes=sampling.PLANES, labelled=False, scans_in_memory=2)
    slab = StreamSpec(("source",), patch=4, margin=1, slab=3, jitter_px=2, tone=0.5, scans_in_memory=3, swap_every=2)
    cube = StreamSpec(("source",), patch=5, margin=0, planes=(), jitter_px=1, tone=0.5, scans_in_memory=2, swap_every=2)
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
    groups = [sampling.scans_of_period(t, total=7, in_memory=3, seed=1, tag="source") for t in range(40)]
    for a, b in zip(groups[::2], groups[1::2]):
        assert len(set(a) | set(b)) == 6  # within a pass no scan comes twice
    assert set(itertools.chain(*groups)) == set(range(7))
    spec = StreamSpec(("source",), scans_in_memory=3, swap_every=2)
    sampler = data.Sampler(spec, (4,), sampling.ScanCache(sources, 9), seed=1)
    assert [sampler.in_memory(step) for step in range(6)] == [groups[step // 2] for step in range(6)]


def test_samples_come_from_the_scans_in_memory(sources):
    spec = StreamSpec(("source",), (("coronary", 1.0),), patch=1, margin=0, scans_in_memory=2, swap_every=1)
    sampler = data.Sampler(spec, (32,), sampling.ScanCache(sources, 9), seed=3)
    for step, batch in enumerate(take(sources, {"s": (spec, (32,))}, 6)):
        assert set(np.unique(batch["s"]["hu"]) - 400) == set(sampler.in_memory(step))


def test_a_stratum_missing_in_memory_is_drawn_from_the_other_scans():
    mixed = {"all": [record(i, calcium=i == 5) for i in range(6)]}
    spec = StreamSpec(("all",), (("calcium_in_slice", 0.5), ("coronary", 0.5)), patch=1, margin=0, scans_in_memory=1)
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
    cache = sampling.ScanCache({"s": source}, 2)
    for i in (0, 1, 0, 2, 0, 1):
        cache.get("s", i, labelled=True)
    assert source.reads == (0, 1, 2, 1)


def test_labels_asked_of_a_scan_without_mask_are_an_error(sources):
    bare = {"s": [{**sources["source"][0], "labelled": False}]}
    with pytest.raises(ValueError, match="scan scan0 of split 's' has no mask"):
        take(bare, {"s": (StreamSpec(("s",), (("anywhere", 1.0),), patch=1, margin=0), (1,))}, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strata": (("brigth", 1.0),)}, "unknown stratum 'brigth'"),
        ({"strata": (("bright", 0.6),)}, "must add up to 1"),
        ({"labelled": False}, "needs labels"),
        ({"slab": 2}, "slab must be odd"),
        ({"planes": ("oblique",)}, "planes must be among"),
        ({"planes": (), "margin": 3}, "a cube .* has margin 0, got 3"),
        ({"planes": (), "margin": 0, "slab": 3}, "slab must be odd, and 1 unless"),
        ({"splits": ("nowhere",)}, "no split 'nowhere' among"),
    ],
)
def test_mistakes_in_a_specification_are_named(sources, change, message):
    with pytest.raises(ValueError, match=message):
        data.make_loader(sources, {"s": (StreamSpec(("source",))._replace(**change), (2,))}, seed=0)


def test_an_undivisible_batch_is_named(sources):
    with pytest.raises(ValueError, match="multiple of 2 processes"):
        data.make_loader(sources, {"s": (StreamSpec(("source",)), (2, 3))}, seed=0, process_count=2)


@pytest.mark.parametrize("lift", [True, False])
def test_tone_curves_rise_and_keep_fat(lift):
    rng, rises = np.random.default_rng(0), []
    for _ in range(200):
        values = data.tone_curve(rng, lift=lift)
        assert (np.diff(values) > 0).all()
        np.testing.assert_allclose(np.interp(-100, data.TONE_KNOTS, values), -100, atol=1e-9)
        rises.append(np.interp(60, data.TONE_KNOTS, values) - values[3])
    lifted = np.mean(np.array(rises) > 150)
    assert 0.4 < lifted < 0.7 if lift else lifted < 0.02


@pytest.mark.parametrize("hu", [record(0)["hu"][None, 0, :, :, None], record(0)["hu"][:3]], ids=["patch", "cube"])
def test_tone_augmentation_leaves_a_quarter_alone(hu):
    rng = np.random.default_rng(0)
    toned = [data.tone_augment(hu, rng) for _ in range(400)]
    assert all(t.shape == hu.shape and t.dtype == np.float32 for t in toned)
    assert 0.18 < np.mean([np.array_equal(t, hu) for t in toned]) < 0.32


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
