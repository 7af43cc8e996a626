"""Labelling against scipy, the lesion table against numpy, growing against pencil drawings and an independent scipy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cacjax.kernels import bits, exact, lesions, neighbours, reduction, runs, union_find

SHAPES = ((3, 40, 40), (4, 1, 33), (1, 1, 1))


def structure(connectivity):
    """The 3x3x3 structure of scipy; outer planes empty for 4 and 8."""
    if connectivity in (4, 8):
        flat = np.zeros((3, 3, 3), bool)
        flat[1] = ndimage.generate_binary_structure(2, {4: 1, 8: 2}[connectivity])
        return flat
    return ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])


def assert_as_scipy(mask, connectivity, **options):
    labels, n = lesions.label(jnp.asarray(mask), connectivity=connectivity, **options)
    expected, count = ndimage.label(mask, structure(connectivity))
    assert int(n) == count
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("connectivity", neighbours.CONNECTIVITY)
@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.02, 0.2, 0.4, 0.6, 0.95]))
def test_label_random(shape, connectivity, seed, density):
    rng = np.random.default_rng(seed)
    for _ in range(8):
        assert_as_scipy(rng.random(shape) < density, connectivity)


@pytest.mark.parametrize("connectivity", neighbours.CONNECTIVITY)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.0001, 0.0003, 0.001]))
def test_label_few_runs_in_a_large_mask(connectivity, seed, density):
    # Few enough beside the mask (1,280 words) for the branch that bisects instead of counting before every word; and one above.
    mask = ndimage.binary_dilation(np.random.default_rng(seed).random((4, 64, 150)) < density, np.ones((2, 2, 3)))
    assert runs.is_small(runs.find(jnp.asarray(mask)), 16) and not runs.is_small(runs.find(jnp.asarray(mask)), 512)
    assert_as_scipy(mask, connectivity, buckets=(16, 512))


def scattered(shape, count, seed=0):
    """Every `count`th part of the volume holds one small box."""
    mask = np.zeros(np.prod(shape), bool)
    mask[np.random.default_rng(seed).choice(mask.size, count, replace=False)] = True
    return ndimage.binary_dilation(mask.reshape(shape), np.ones((2, 2, 3)))


@pytest.mark.parametrize("connectivity", neighbours.CONNECTIVITY)
def test_label_of_a_mask_of_which_few_rows_are_kept(connectivity):
    for count in (0, 1, 40, 120, 400):  # from about 300 on more groups of rows hold voxels than are kept
        assert_as_scipy(scattered((34, 499, 37), count, count), connectivity, buckets=(200,))  # 120 have too many runs


def test_as_many_rows_and_runs_as_are_kept_and_one_above():
    for groups in (runs.KEPT - 1, runs.KEPT, runs.KEPT + 1):
        for extra in (0, 1):
            mask = np.zeros((33, 512, 40), bool)
            mask.reshape(-1, runs.GROUP, 40)[:groups, -1, ::20] = True
            mask[0, 0, :extra] = True
            assert_as_scipy(mask, 26, buckets=(2 * runs.KEPT,))


def test_slots_not_in_use_lie_in_the_volume(monkeypatch):
    monkeypatch.setattr(runs, "_chunk", lambda capacity: capacity)  # all slots at once, as on an accelerator
    for count in (0, 3):
        mask = jnp.asarray(scattered((34, 499, 37), count))
        low, high = runs.over(mask, lambda found, packed: (found.word.min(), found.word.max()))
        assert 0 <= int(low) <= int(high) < 34 * 499 * 2


def test_table_of_kept_rows_is_that_of_all(monkeypatch):
    mask = scattered((33, 512, 40), 60)
    rng = np.random.default_rng(1)
    hu, artery = rng.normal(300, 99, mask.shape).astype(np.float32), rng.integers(0, 4, mask.shape).astype(np.uint8)
    find = lambda *a: lesions.find.__wrapped__(*a, SPACING, connectivity=6, by_slice=False)  # noqa: E731
    labels, n = lesions.label(mask, connectivity=6, buckets=(4096,))
    monkeypatch.setattr(runs, "BUCKETS", (4096,))
    kept = [jax.jit(find)(mask, hu, artery), lesions.table.__wrapped__(labels, n, hu, artery, SPACING, by_slice=False)]
    monkeypatch.setattr(runs, "KEPT", mask.size)
    of_all = jax.jit(lambda *a: find(*a))(mask, hu, artery)
    for table in kept:
        jax.tree.map(np.testing.assert_array_equal, table, of_all)


def test_label_of_rows_longer_than_a_small_branch_takes():
    mask = np.random.default_rng(1).random((2, 3, 40_000)) < 0.001
    assert_as_scipy(mask, 26, buckets=(16, 512))


def test_a_batch_gives_what_each_scan_gives():
    rng = np.random.default_rng(8)
    mask = rng.random((3, 4, 20, 40)) < np.array([0.02, 0.3, 0.0])[:, None, None, None]
    hu, artery = rng.normal(300, 99, mask.shape).astype(np.float32), rng.integers(0, 4, mask.shape).astype(np.uint8)
    batch = jax.vmap(lambda *scan: lesions.find(*scan, SPACING, connectivity=6))(mask, hu, artery)
    for i in range(3):
        alone = lesions.find(mask[i], hu[i], artery[i], SPACING, connectivity=6)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a, i=i: a[i], batch), alone)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 33), (1, 5, 31), (3, 4, 64)])
def test_windows_hold_the_voxels_of_each_word(shape, dtype):
    volume = np.random.default_rng(2).normal(0, 500, shape).astype(dtype)
    mask = volume > 100
    packed = np.asarray(bits.pack(jnp.asarray(mask))).ravel()
    values, ones = bits.windows(jnp.asarray(volume), jnp.arange(packed.size), jnp.asarray(packed))
    on = np.asarray(bits.unpack(ones[:, None], 32)).reshape(-1, 32)
    np.testing.assert_array_equal(np.asarray(values)[on], volume[mask])


def test_running_sum_and_max_are_exact():
    rng = np.random.default_rng(5)
    for most, n in ((1, 100_001), (16, 70_000), (1 << 20, 3000), (3, 5)):
        counts = rng.integers(0, most + 1, n, dtype=np.int32)
        np.testing.assert_array_equal(bits.running_sum(jnp.asarray(counts), most=most), np.cumsum(counts, dtype=np.int32))
        np.testing.assert_array_equal(bits.sum_before(jnp.asarray(counts), most=most), np.cumsum(counts, dtype=np.int32) - counts)
        np.testing.assert_array_equal(bits.running_max(jnp.asarray(counts), len(counts)), np.maximum.accumulate(counts))


def spiral(size):
    """One path, one voxel wide, from the corner to the middle of a square."""
    mask, (y, x), (dy, dx) = np.zeros((size, size), bool), (0, 0), (0, 1)
    mask[0, 0] = True
    for _ in range(size * size):
        ahead = (y + 2 * dy, x + 2 * dx)
        if not (0 <= y + dy < size and 0 <= x + dx < size) or (0 <= ahead[0] < size and 0 <= ahead[1] < size and mask[ahead]):
            dy, dx = dx, -dy
        if mask[min(max(y + dy, 0), size - 1), min(max(x + dx, 0), size - 1)]:
            break
        y, x = y + dy, x + dx
        mask[y, x] = True
    return mask


def drawings():
    shape = (3, 40, 40)
    z, y, x = np.indices(shape)
    comb = (x % 2 == 0) | (y == 39)
    coil = np.zeros(shape, bool)
    coil[0] = coil[2] = spiral(40)
    coil[1, 0, 0] = True
    rows = np.zeros(shape, bool)
    rows[0, 0, 31:33] = rows[1, 1, 39] = rows[1, 2, 0] = True  # across a word, and not across the padding
    return {
        "empty": np.zeros(shape, bool),
        "full": np.ones(shape, bool),
        "comb": comb,
        "checkerboard": (z + y + x) % 2 == 0,
        "spiral": coil,
        "rows": rows,
    }


@pytest.mark.parametrize("name", list(drawings()))
@pytest.mark.parametrize("connectivity", neighbours.CONNECTIVITY)
def test_label_drawings(name, connectivity):
    assert_as_scipy(drawings()[name], connectivity)


@pytest.mark.parametrize("name", ["checkerboard", "spiral", "comb"])
def test_parallel_union_equals_serial(name):
    # The accelerator's variant, run here on its own: lax.platform_dependent takes the other on CPU.
    mask = drawings()[name]
    packed = runs.find(jnp.asarray(mask))
    found = runs._compact(packed, runs.capacities(packed.words.shape)[-1])
    for connectivity in neighbours.CONNECTIVITY:
        node = jnp.arange(found.word.shape[0], dtype=jnp.int32)
        around = neighbours._words(found, packed), neighbours._ranks(found, packed)
        linked = neighbours._link(packed, mask.shape, (connectivity,), *around, node, *found)
        serial = jax.jit(union_find.number_serial)(*linked, packed.n)
        jax.tree.map(np.testing.assert_array_equal, jax.jit(union_find.number_parallel)(*linked, packed.n), serial)


@pytest.mark.parametrize("count", [0, 7, 8, 9, 63, 64, 65, 240])
def test_label_fills_each_bucket_and_one_above(count):
    mask = np.zeros((3, 40, 40), bool)
    mask.reshape(-1)[: 2 * count : 2] = True
    assert_as_scipy(mask, 26, buckets=(8, 64))


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(6)
    mask = rng.random((3, 40, 40)) < 0.2
    hu, artery = rng.normal(300, 99, mask.shape).astype(np.float32), rng.integers(0, 4, mask.shape).astype(np.uint8)
    whole = lesions.find(mask, hu, artery, SPACING)
    monkeypatch.setattr(runs, "CHUNK", 1024)
    assert runs.capacities((120, 2)) == (4096,)
    in_chunks = jax.jit(lambda *a: lesions.find.__wrapped__(*a, SPACING))(mask, hu, artery)
    jax.tree.map(np.testing.assert_array_equal, in_chunks, whole)


def test_buckets_are_chosen_by_shape():
    assert runs.capacities((4, 1)) == (64,)
    assert runs.capacities((512 * 256, 16)) == (*runs.BUCKETS, 512 * 256 * 256)


def test_label_rejects_other_connectivity():
    with pytest.raises(ValueError, match="connectivity must be one of"):
        lesions.label(jnp.zeros((1, 1, 1), bool), connectivity=7)


SPACING = (2.0, 0.5, 0.7)


def expected_row(labels, k, hu, artery):
    at = np.nonzero(labels == k)
    votes = np.bincount(artery[at], minlength=7)[1:]
    area = np.array([(labels[z] == k).sum() for z in range(len(labels))]) * 0.5 * 0.7
    return {
        "voxels": len(at[0]),
        "volume_mm3": len(at[0]) * 0.7,
        "artery": votes.argmax() + 1 if votes.any() else 0,
        "peak_hu": hu[at].max(),
        "sum_hu": hu[at].sum(),
        "mean_hu": hu[at].mean(),
        "centroid": [a.mean() for a in at],
        "low": [a.min() for a in at],
        "high": [a.max() + 1 for a in at],
        "touches_border": any(a.min() == 0 or a.max() == s - 1 for a, s in zip(at, labels.shape)),
        "area_mm2": area,
        "slice_peak_hu": [hu[z][labels[z] == k].max(initial=-np.inf) for z in range(len(labels))],
    }


@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_table_equals_numpy(density):
    rng = np.random.default_rng(3)
    shape = (3, 40, 40)
    mask = rng.random(shape) < density
    hu = rng.normal(300, 300, shape).astype(np.float32)
    artery = rng.integers(0, 4, shape).astype(np.uint8) * (rng.random(shape) < 0.3)
    labels, n = lesions.label(mask, connectivity=6)
    table = jax.device_get(lesions.table(labels, n, hu, artery, SPACING, capacity=512))
    assert not table.overflow and table.n == n
    for k in range(1, int(n) + 1):
        for name, value in expected_row(np.asarray(labels), k, hu, artery).items():
            np.testing.assert_allclose(getattr(table, name)[k - 1], value, rtol=2e-5, atol=2e-3, err_msg=name)
    assert (table.voxels[int(n) :] == 0).all()


@pytest.mark.parametrize("connectivity", [8, 26])
def test_find_is_label_and_table_at_once(connectivity):
    rng = np.random.default_rng(4)
    mask = rng.random((3, 40, 40)) < 0.1
    hu, artery = rng.normal(300, 99, mask.shape).astype(np.float32), rng.integers(0, 4, mask.shape).astype(np.uint8)
    labels, n = lesions.label(mask, connectivity=connectivity)
    apart = lesions.table(labels, n, hu, artery, SPACING, capacity=512)
    jax.tree.map(np.testing.assert_array_equal, lesions.find(mask, hu, artery, SPACING, connectivity=connectivity), apart)


def test_table_without_slices_is_the_same_but_for_them():
    rng = np.random.default_rng(9)
    mask = rng.random((3, 40, 40)) < 0.1
    hu, artery = rng.normal(300, 99, mask.shape).astype(np.float32), rng.integers(0, 4, mask.shape).astype(np.uint8)
    whole = lesions.find(mask, hu, artery, SPACING)
    short = lesions.find(mask, hu, artery, SPACING, by_slice=False)
    assert short.area_mm2.shape == short.slice_peak_hu.shape == (512, 0)
    same = {"area_mm2": None, "slice_peak_hu": None}
    jax.tree.map(np.testing.assert_array_equal, short._replace(**same), whole._replace(**same))


def test_table_votes():
    artery = np.zeros((3, 40, 40), np.uint8)
    artery[0, 0, :4] = [3, 3, 2, 2]  # a tie goes to the smallest
    artery[0, 2, :3] = [0, 0, 5]  # background has no vote
    mask = np.zeros(artery.shape, bool)
    mask[0, 0, :4] = mask[0, 2, :3] = mask[0, 2, 10] = True
    labels, n = lesions.label(mask, connectivity=6)
    table = lesions.table(labels, n, np.zeros(artery.shape, np.float32), artery, SPACING, capacity=512)
    assert table.artery[:3].tolist() == [2, 5, 0]


def test_table_overflow_is_flagged_and_full_table_holds_all():
    mask = np.zeros((3, 40, 40), bool)
    mask[::2, ::2, ::2] = True  # 800 lesions, more than the smallest capacity
    hu, artery = np.full(mask.shape, 200, np.float32), np.ones(mask.shape, np.uint8)
    labels, n = lesions.label(mask, connectivity=6)
    assert bool(lesions.table(labels, n, hu, artery, SPACING, capacity=512).overflow)
    table = lesions.full_table(labels, n, hu, artery, SPACING)
    assert not bool(table.overflow) and int((table.voxels > 0).sum()) == 800


def test_sums_of_hu_pass_32_bits():
    labels = np.ones((3, 40, 40), np.int32)  # 1.4e7 HU: in units of 1/1024 HU beyond 2^33
    hu, artery = np.full(labels.shape, 3001), np.ones(labels.shape, np.uint8)
    table = lesions.table(labels, np.int32(1), hu.astype(np.float32), artery, SPACING, capacity=512)
    assert float(table.mean_hu[0]) == pytest.approx(3001, rel=1e-7)
    np.testing.assert_allclose(table.centroid[0], [1, 19.5, 19.5], rtol=1e-6)
    words = np.stack([np.array([2**32 - 2]).astype(np.int64), np.array([0]), np.array([0]), np.array([5])], 1)
    assert exact.undigits(words.astype(np.uint32).astype(np.int32))[0] == 2**32 - 2 + 5 * 2**21


def blank(shape=(6, 20, 40)):
    return np.zeros(shape, np.uint8), np.zeros(shape, np.float32)


ONE = (1.0, 1.0, 1.0)


def test_grow_takes_the_whole_component_and_its_majority():
    detected, hu = blank()
    hu[2, 2, 2:10] = 150
    hu[2, 5, 20:22] = 150  # not detected
    detected[2, 2, 2:5] = [1, 1, 2]
    detected[4, 4, 4] = 3  # below the threshold
    for mode in ("paper", "authors_code"):
        grown, removed = reduction.grow(detected, hu, 150, None, ONE, mode=mode)
        expected = np.zeros_like(detected)
        expected[2, 2, 2:10] = 1
        np.testing.assert_array_equal(grown, expected)
        assert int(removed.below_threshold) == 1


@pytest.mark.parametrize(("share", "kept"), [(0.0, [4, 3, 5]), (0.5, [4, 3, 0]), (0.51, [0, 3, 0])])
def test_grow_asks_for_a_share_of_a_component(share, kept):
    detected, hu = blank()
    for row, (size, found) in zip((1, 4, 7), ((4, 2), (3, 2), (5, 2))):
        hu[2, row, :size], detected[2, row, :found] = 200, 1
    grown = np.asarray(reduction.grow(detected, hu, 130, None, ONE, least_share=share)[0])
    assert [int(grown[2, row].sum()) for row in (1, 4, 7)] == kept and grown.sum() == sum(kept)


@pytest.mark.parametrize("mode", ["paper", "authors_code"])
def test_grow_asks_for_a_sure_voxel(mode):
    detected, hu = blank()
    sure = np.zeros(hu.shape, bool)
    for row, at in ((1, 0), (4, 3), (7, 5)):  # sure at a detected voxel, at another of the lesion, beside it
        hu[2, row, :4], detected[2, row, :2], sure[2, row, at] = 200, 1, True
    grown, removed = reduction.grow(detected, hu, 130, None, ONE, mode=mode, sure=sure)
    assert [int(np.asarray(grown)[2, row].sum()) for row in (1, 4, 7)] == [4, 4, 0] and int(removed.unsure) == 1


def test_grow_modes_differ_at_corners_and_at_the_heart():
    detected, hu = blank()
    hu[2, 2, 2:6] = hu[2, 3, 6:9] = 200  # touch at a corner
    detected[2, 2, 3] = 2
    heart = np.zeros(hu.shape, bool)
    heart[2, 2, 4:] = heart[2, 3] = True
    paper, _ = reduction.grow(detected, hu, 130, heart, ONE)
    code, removed = reduction.grow(detected, hu, 130, heart, ONE, mode="authors_code")
    assert np.argwhere(np.asarray(paper)).tolist() == [[2, 2, x] for x in range(2, 6)]
    assert np.argwhere(np.asarray(code)).tolist() == [[2, 2, 4], [2, 2, 5], [2, 3, 6], [2, 3, 7], [2, 3, 8]]
    assert int(removed.cut_by_heart) == 2
    heart[2, 2, 4] = False  # one of four voxels is left in it, as of a rib beside it
    assert not np.asarray(reduction.grow(detected, hu, 130, heart, ONE)[0]).any()
    published, _ = reduction.grow(detected, hu, 130, heart, ONE, in_heart=0.0)  # the paper drops what lies outside of the heart, not cut
    np.testing.assert_array_equal(published, paper)
    heart[2, 2] = False
    assert not np.asarray(reduction.grow(detected, hu, 130, heart, ONE, in_heart=0.0)[0]).any()


@pytest.mark.parametrize(("volume", "kept"), [(499, True), (500, True), (501, False)])
def test_grow_upper_limit_is_inclusive(volume, kept):
    detected, hu = blank()
    hu[1:3, 1:19] = (np.arange(2 * 18 * 40) < volume).reshape(2, 18, 40) * 200
    detected[1, 1, 0] = 1
    for mode in ("paper", "authors_code"):
        grown, removed = reduction.grow(detected, hu, 130, None, ONE, mode=mode)
        assert int((grown > 0).sum()) == volume * kept
        assert int(removed.too_large) == 1 - kept


def test_grow_lower_limits():
    detected, hu = blank()
    hu[1, 1, :1] = hu[3, 1, :2] = hu[5, 1, :3] = 200
    detected[hu > 0] = 1
    paper = [int((reduction.grow(detected, hu, 130, None, (1.0, 0.5, s))[0] > 0).sum()) for s in (2.0, 1.0, 0.9)]
    assert paper == [6, 5, 3]  # voxels of 1, 0.5 and 0.45 mm3
    code, removed = reduction.grow(detected, hu, 130, None, ONE, mode="authors_code")
    assert int((code > 0).sum()) == 3 and int(removed.specks) == 2


def test_grow_steps_can_be_left_out():
    detected, hu = blank()
    hu[2, 2, 2:10] = 150
    detected[2, 2, 3:5] = [1, 2]
    detected[4, 4, 4] = 3
    heart = np.zeros(hu.shape, bool)
    np.testing.assert_array_equal(reduction.grow(detected, hu, 130, heart, ONE, steps=())[0], detected)
    only = reduction.grow(detected, hu, 130, heart, ONE, steps=("threshold",))[0]
    np.testing.assert_array_equal(only, detected * (hu > 0))
    assert int(reduction.grow(detected, hu, 130, heart, ONE, steps=("grow", "heart"))[1].outside_heart) == 1
    with pytest.raises(ValueError, match="steps"):
        reduction.grow(detected, hu, 130, heart, ONE, steps=("shrink",))
    with pytest.raises(ValueError, match="mode"):
        reduction.grow(detected, hu, 130, heart, ONE, mode="fast")


def grow_by_hand(detected, hu, threshold, heart, spacing, mode, max_mm3, in_heart):
    """Independent: a loop over scipy's labels, as the specification has it: one voxel in the heart is enough (in_heart 0)."""
    labels, n = ndimage.label(hu >= threshold, structure(6 if mode == "paper" else 26))
    voxel, out = float(np.prod(spacing)), np.zeros_like(detected)
    for k in range(1, n + 1):
        part = labels == k
        votes = np.bincount(detected[part], minlength=7)[1:]
        size = part.sum()
        if not votes.any():
            continue
        if mode == "paper" and (not 1 <= size * voxel <= max_mm3 or not (part & heart).any() or (part & heart).sum() < in_heart * size):
            continue
        if mode != "paper" and size > np.ceil(max_mm3 / voxel):
            continue
        out[part] = votes.argmax() + 1
    if mode != "paper":
        out[~heart] = 0
        labels, n = ndimage.label(out > 0, structure(26))
        for k in range(1, n + 1):
            if (labels == k).sum() <= 2:
                out[labels == k] = 0
    return out


@pytest.mark.parametrize(("mode", "in_heart"), [("paper", 0.0), ("paper", 0.5), ("authors_code", 0.5)])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.05, 0.2, 0.35]))
def test_grow_random(mode, in_heart, seed, density):
    rng = np.random.default_rng(seed)
    shape, spacing = (6, 20, 40), (1.5, 0.6, 0.5)
    hu = np.where(rng.random(shape) < density, 200, 0).astype(np.float32)
    detected = (rng.integers(1, 4, shape) * (rng.random(shape) < 0.1)).astype(np.uint8)
    heart = np.zeros(shape, bool)
    heart[1:4, 2:7, 10:30] = True
    grown, _ = reduction.grow(detected, hu, 130.0, heart, spacing, mode=mode, max_mm3=20.0, in_heart=in_heart)
    np.testing.assert_array_equal(grown, grow_by_hand(detected, hu, 130, heart, spacing, mode, 20.0, in_heart))
