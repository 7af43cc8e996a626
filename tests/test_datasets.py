"""Cohorts: what is written is read back, once, whole or not at all, without TensorFlow."""

import contextlib
import csv
import inspect
import itertools
import pathlib
import re
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets.core.shuffle

import cacjax.phantom
from cacjax.data import cohorts, folder, folds, phantom, records
from cacjax.data import loader as data
from cacjax.data.sampling import Cut, StreamSpec
from cacjax.files import manifest, scan
from cacjax.kernels import grids, spatial
from cacjax.phantom import pool
from cacjax.phantom.anatomy import sample_patient

SHAPE, SPACING = (5, 9, 12), (1.5, 0.7, 0.66)
COMMON = {"grid": {"kind": "spline", "spacing_mm": SPACING}, "labels": "classes", "folds": 0, "fold": 0}


def fake_scan(protocol, seed, *, shape, spacing_mm):
    """A phantom whose every number follows from its seed."""
    rng, affine = np.random.default_rng(seed), np.eye(4)
    affine[:3, :3] = np.diag(spacing_mm)[::-1]
    return types.SimpleNamespace(
        hu=rng.integers(-1000, 1000, shape).astype(np.int16),
        label=rng.integers(0, 7, shape).astype(np.uint8),
        coronary=rng.uniform(0, 30, shape).astype(np.float32),
        heart=rng.random(shape) < 0.5,
        affine=affine,
        truth={"threshold_hu": 130.0 + (protocol == "ccta"), "aorta_hu": 40.5, "noise_hu": 10.0},
    )


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(vars(cacjax.phantom), "make_scan", fake_scan)  # it is loaded when first asked for
    splits = {
        "source_train": {"protocol": "cardiac,chest", "count": 3, "calcified": 0.0, "categories": (), "paired": False},
        "target_train": {"protocol": "ccta", "count": 2, "calcified": 0.0, "categories": (), "paired": False},
    }
    return COMMON | {"kind": "phantom", "directory": str(tmp_path), "workers": 0, "seed": 7, "splits": splits, "shape": SHAPE}


def test_digest_covers_what_decides_a_scan_and_nothing_else():
    reached, waiting = set(), {"cohort", "pool"}
    folder_of = pathlib.Path(cacjax.phantom.__file__).parent
    while waiting:
        reached.add(module := waiting.pop())
        text = (folder_of / f"{module}.py").read_text()
        words = re.findall(r"from cacjax\.phantom\.(\w+) import", text)
        words += [word for line in re.findall(r"from cacjax\.phantom import (.*)", text) for word in re.findall(r"\w+", line)]
        waiting |= set(words) - reached
    assert {path.stem for path in folder_of.glob("*.py")} - set(phantom.DECIDE_NOTHING) == reached


def open_quietly(config):
    return cohorts.open(config, progress=False)


def test_phantom_cohort_comes_back_as_it_was_made(config):
    sources = open_quietly(config)
    assert {name: len(source) for name, source in sources.items()} == {"source_train": 3, "target_train": 2}
    record = sources["source_train"][1]
    made = fake_scan("chest", phantom.patient_seed(7, "source_train", 1), shape=SHAPE, spacing_mm=SPACING)
    for key in ("hu", "label", "heart", "affine"):
        np.testing.assert_array_equal(record[key], getattr(made, key), strict=key != "heart")
    np.testing.assert_allclose(record["spacing_mm"], SPACING)
    assert record["id"] == b"source_train-0001" and record["protocol"] == b"chest" and record["domain"] == b"source"
    assert record["threshold_hu"] == 130 and record["aorta_hu"] == 40.5 and record["labelled"]
    assert sources["target_train"][0]["domain"] == b"target" and sources["target_train"][0]["threshold_hu"] == 131


def test_labels_of_what_can_be_seen(config):
    settings = phantom.settings(config)
    record = open_quietly(config | {"labels": "visible"})["target_train"][0]
    made = fake_scan("ccta", phantom.patient_seed(7, "target_train", 0), shape=SHAPE, spacing_mm=SPACING)
    np.testing.assert_array_equal(record["label"], 7 * (made.coronary > 25))
    assert record["label"].any() and phantom.settings(config | {"labels": "visible"}) == settings | {"labels": "visible"}


def test_a_paired_split_holds_both_scans_of_each_patient(config, monkeypatch):
    pair = lambda protocol, seed, **grid: (fake_scan(protocol, seed, **grid), fake_scan(protocol, seed + 50, **grid))  # noqa: E731
    monkeypatch.setitem(vars(cacjax.phantom), "make_pair", pair)
    alone = phantom.settings(config)["splits"]
    assert not any("paired" in part for part in alone.values())
    config["splits"]["source_train"]["paired"] = True
    sources = open_quietly(config)
    names = [record["id"].decode() for record in sources["source_train"]]
    assert names == [f"source_train-{number:04d}{arm}" for number in range(3) for arm in "ab"] and len(sources["target_train"]) == 2
    made = pair("chest", phantom.patient_seed(7, "source_train", 1), shape=SHAPE, spacing_mm=SPACING)
    for number, scan_made in enumerate(made, 2):
        np.testing.assert_array_equal(sources["source_train"][number]["hu"], scan_made.hu)
    with pytest.raises(ValueError, match="got paired splits source_train"):
        phantom.settings(config | {"folds": 2})


def test_a_cohort_is_prepared_once_and_again_when_its_settings_change(config, monkeypatch):
    open_quietly(config)
    monkeypatch.setitem(vars(cacjax.phantom), "make_scan", None)
    open_quietly(config)
    with pytest.raises(TypeError):
        open_quietly(config | {"seed": 8})


def test_two_that_ask_at_once_prepare_once(config, monkeypatch):
    made = []

    def count(protocol, seed, **grid):
        made.append(seed)
        return fake_scan(protocol, seed, **grid)

    monkeypatch.setitem(vars(cacjax.phantom), "make_scan", count)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(open_quietly, [config, config]))
    assert len(made) == 5 and [len(sources["source_train"]) for sources in both] == [3, 3]


def test_a_cohort_larger_than_a_file_is_written_as_it_is_made(config, monkeypatch):
    """In order, over several files, and without the buffers of tensorflow-datasets, which need TensorFlow from 1 GB on."""
    monkeypatch.setattr(tensorflow_datasets.core.shuffle, "MAX_MEM_BUFFER_SIZE", 1)
    monkeypatch.setattr(records, "SHARD", 2)
    config["splits"]["source_train"]["count"] = 5
    sources = cohorts.open(config, progress=False)
    assert [record["id"] for record in sources["source_train"]] == [b"source_train-%04d" % k for k in range(5)]
    assert len(sources["target_train"]) == 2


def test_an_older_phantom_is_not_taken_for_this_one(config, monkeypatch):
    before = cohorts.digest(phantom.settings(config))
    monkeypatch.setattr(phantom, "_generator", lambda: "another")
    assert cohorts.digest(phantom.settings(config)) != before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_preparation_is_done_again(config, monkeypatch, tmp_path, error):
    def stop(protocol, seed, **grid):
        if seed == phantom.patient_seed(7, "source_train", 2):
            raise error
        return fake_scan(protocol, seed, **grid)

    with monkeypatch.context() as patch:
        patch.setitem(vars(cacjax.phantom), "make_scan", stop)
        with pytest.raises(error):
            open_quietly(config)
    (left,) = tmp_path.glob("phantom_cohort/*")
    assert [path.name for path in left.iterdir() if path.name != "downloads"] == ["lock"]
    (left / "incomplete.ABCDEF_1.0.0").mkdir()  # what a killed process leaves
    assert len(open_quietly(config)["source_train"]) == 3
    assert sorted(path.name for path in left.iterdir()) == ["1.0.0", "lock"]


def test_a_share_of_patients_is_drawn_until_they_have_calcium():
    def calcium_mm3(seed):
        samples = sample_patient(seed, "cardiac").calcium
        return samples["dV"][samples["cls"] <= 3].sum()

    seeds = [pool.calcified_seed(phantom.patient_seed(1000, "source_train", n), "cardiac") for n in range(4)]
    assert min(calcium_mm3(seed) for seed in seeds) >= pool.CALCIFIED_MM3
    assert [pool.drawn_again(n, 0.75) for n in range(8)] == [False, True, True, True] * 2


def test_splits_have_patients_of_their_own():
    names = [f"{domain}_{part}" for domain in records.DOMAINS for part in ("train", "val", "test")]
    seeds = {phantom.patient_seed(1000, name, i) for name in names for i in range(1000)}
    assert len(seeds) == 6000 and max(seeds) < 2**31


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "fantom"}, "data.kind must be one of phantom, folder"),
        ({"splits": {}}, "data.splits is empty"),
        (
            {"splits": {"source_train": {"protocol": "ct", "count": 1, "calcified": 0.0, "categories": (), "paired": False}}},
            "data.splits.source_train: protocol must be one of chest",
        ),
        (
            {"splits": {"source_train": {"protocol": "ccta", "count": 0, "calcified": 0.0, "categories": (), "paired": False}}},
            "a positive count",
        ),
        (
            {"splits": {"source_train": {"protocol": "ccta", "count": 1, "calcified": 2, "categories": (), "paired": False}}},
            "a share of calcified patients",
        ),
    ],
)
def test_unusable_settings_are_named(config, change, message):
    with pytest.raises(ValueError, match=message):
        open_quietly(config | change)


def test_data_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("CACJAX_DATA_DIR", raising=False)
    assert cohorts.data_directory().parts[-3:] == (".cache", "cacjax", "datasets")
    monkeypatch.setenv("CACJAX_DATA_DIR", str(tmp_path))
    assert cohorts.data_directory() == tmp_path
    assert cohorts.data_directory(str(tmp_path / "own")) == tmp_path / "own"


def test_the_loader_reads_a_prepared_cohort_with_threads(config):
    cut = Cut((1, 3, 3), (0, 2, 2), ("axial",))
    spec = StreamSpec(("source_train",), cut, (("calcium", 0.5), ("bright", 0.5)), scans_in_memory=2)
    loader = data.make_loader(open_quietly(config), {"s": (spec._replace(swap_every=1), (2, 4))}, seed=0)
    with contextlib.closing(loader):
        batch = next(loader)["s"]
    assert batch["hu"].shape == (2, 4, 1, 7, 7, 1) and (batch["label"][:, :2, 0, 1, 1] > 0).all()


ALONE = f"""
import sys, types
import numpy as np
import cacjax.phantom
{inspect.getsource(fake_scan)}
cacjax.phantom.make_scan = fake_scan
if __name__ == "__main__":
    from cacjax.data import cohorts
    splits = {{"source_train": {{"protocol": "ccta", "count": 5, "calcified": 0.0, "categories": (), "paired": False}}}}
    config = {COMMON} | {{"kind": "phantom", "directory": sys.argv[1], "seed": 0, "splits": splits, "shape": {SHAPE}, "workers": 2}}
    ids = [record["id"].decode() for record in cohorts.open(config)["source_train"]]
    assert ids == [f"source_train-{{i:04d}}" for i in range(5)], ids
    print("tensorflow" in sys.modules)
"""


def test_processes_prepare_in_order_and_without_tensorflow(tmp_path):
    (tmp_path / "main.py").write_text(f"import sys; sys.path[:0] = {sys.path!r}\n{ALONE}")
    command = [sys.executable, tmp_path / "main.py", tmp_path / "data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
    assert "5/5" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def scans(tmp_path):
    """Three scans of unequal sides, a mask and a heart for the first, a mask with an unknown label, one file missing."""
    rng, affine = np.random.default_rng(0), np.eye(4)
    affine[:3, :3] = np.diag(SPACING)[::-1]
    place = tmp_path / "scans"
    place.mkdir()
    hu = rng.integers(-900, 900, (3, *SHAPE)).astype(np.float32)
    label = rng.integers(0, 7, SHAPE)
    for i in range(3):
        scan.write_image(hu[i], affine, place / f"s{i}.nii.gz")
    scan.write_image(label, affine, place / "s0_label.nii.gz", np.uint8)
    scan.write_image(label > 3, affine, place / "s0_heart.nii.gz", np.uint8)
    scan.write_image(label + 7, affine, place / "s2_label.nii.gz", np.uint8)
    rows = [
        {"scan": "s0.nii.gz", "mask": "s0_label.nii.gz", "heart": "s0_heart.nii.gz", "split": "source_train"},
        {"scan": "s1.nii.gz", "split": "target_train", "protocol": "ccta", "threshold_hu": "410.5", "aorta_hu": "350"},
        {"scan": "s2.nii.gz", "mask": "s2_label.nii.gz", "split": "source_train"},
        {"scan": "s3.nii.gz", "split": "source_train"},
        {"scan": "s1.nii.gz", "split": "source_train", "domain": "elsewhere"},
    ]
    write_manifest(place, rows)
    config = {"kind": "folder", "directory": str(tmp_path / "data"), "workers": 0, "manifest": str(place)}
    return types.SimpleNamespace(place=place, rows=rows, hu=hu, label=label, config=COMMON | config)


def write_manifest(place, rows):
    columns = ("scan", "mask", "heart", "split", "domain", "protocol", "threshold_hu", "aorta_hu")
    with (place / manifest.NAME).open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def test_folder_comes_back_and_names_the_rows_it_left_out(scans, capsys):
    sources = open_quietly(scans.config)
    (first,), (second,) = sources["source_train"], sources["target_train"]
    np.testing.assert_array_equal(first["hu"], scans.hu[0])
    np.testing.assert_array_equal(first["label"], scans.label)
    np.testing.assert_array_equal(first["heart"], scans.label > 3)
    assert first["labelled"] and np.isnan(first["threshold_hu"]) and first["domain"] == b"source"
    np.testing.assert_allclose(first["spacing_mm"], SPACING, rtol=1e-5)
    assert not second["labelled"] and not second["label"].any() and second["domain"] == b"target"
    assert (second["threshold_hu"], second["aorta_hu"], second["protocol"]) == (410.5, 350, b"ccta")
    told = capsys.readouterr().err
    assert "3 rows left out" in told
    with open(told.split("see ")[1].strip(), newline="") as file:
        rejected = list(csv.DictReader(file))
    assert [(row["scan"], row["reason"]) for row in rejected] == [
        ("s2.nii.gz", "ValueError"),
        ("s3.nii.gz", "not_found"),
        ("s1.nii.gz", "ValueError"),
    ]
    assert "mask holds [8, 9, 10, 11" in rejected[0]["message"] and "elsewhere" in rejected[2]["message"]


def test_a_changed_folder_is_prepared_anew(scans):
    open_quietly(scans.config)
    write_manifest(scans.place, scans.rows[:2] + [{"scan": "s2.nii.gz", "split": "source_train"}])
    assert len(open_quietly(scans.config)["source_train"]) == 2


def test_no_usable_row_is_an_error_that_names_the_manifest(scans):
    write_manifest(scans.place, scans.rows[2:])
    with pytest.raises(manifest.ManifestError, match=r"manifest.csv: none of the 3 rows of split 'source_train'"):
        open_quietly(scans.config)
    write_manifest(scans.place, [])
    with pytest.raises(manifest.ManifestError, match=r"manifest.csv: no rows"):
        open_quietly(scans.config)
    with pytest.raises(manifest.ManifestError, match="expected a manifest"):
        open_quietly(scans.config | {"manifest": str(scans.place / "nowhere")})


@pytest.mark.parametrize("spacing_mm", [(1.0, 0.5, 0.9), (1.3, 0.94, 0.48)])
def test_spline_grid_keeps_the_outer_voxel_centres_and_turns_flipped_scans(scans, spacing_mm):
    """Bit for bit what `spatial.resample` makes, of labels too."""
    image, grid = scan.read(scans.place / "s0.nii.gz"), {"kind": "spline", "spacing_mm": spacing_mm}
    hu, mask, heart, affine = folder.to_grid(image, scans.label, None, grid)
    old_mm = scan.spacing_mm(image.affine)
    expected, true_mm = spatial.resample(image.hu, old_mm, spacing_mm, order=3)
    np.testing.assert_array_equal(hu, expected)
    np.testing.assert_array_equal(mask, spatial.resample(scans.label, old_mm, spacing_mm, order=0)[0])
    np.testing.assert_allclose(scan.spacing_mm(affine), true_mm, rtol=1e-12)
    assert hu.dtype == np.float32 and mask.dtype == np.uint8 and heart is None
    corner, last = np.array(SHAPE) - 1, np.array(hu.shape) - 1
    np.testing.assert_allclose(affine @ [*last, 1], image.affine @ [*corner, 1], atol=1e-6)
    flipped = image.affine @ np.array([[-1, 0, 0, corner[0]], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    turned = folder.to_grid(image._replace(hu=image.hu[::-1], affine=flipped), None, None, grid)
    np.testing.assert_array_equal(turned[0], hu)
    np.testing.assert_allclose(turned[3], affine, atol=1e-9)


@pytest.mark.parametrize("old_mm", [0.1, 0.7, 0.66, 0.9765625, 1.1, 2.9])
def test_labels_halfway_between_two_voxels_fall_to_the_further_whatever_the_spacing(old_mm):
    """10 voxels on 7: steps of 1.5 voxels, which is not 1.5 * spacing / spacing in floating point."""
    hu = np.zeros((1, 1, 10), np.float32)
    coarse, index = grids.resample(hu, (1.0, 1.0, old_mm), {"kind": "spline", "spacing_mm": (1.0, 1.0, old_mm * 10 / 7)})
    labels = grids.nearest(np.arange(10, dtype=np.uint8)[None, None], index, coarse.shape)
    np.testing.assert_array_equal(labels[0, 0], [0, 2, 3, 5, 6, 8, 9])


def test_linear_grid_takes_means_of_whole_blocks():
    """Two voxels of 1 mm in one of 2 mm, whose centre lies half a voxel further; labels are those of the voxel at it."""
    affine = np.array([[0, 0, 1.0, 10], [0, 1, 0, 20], [1, 0, 0, 30], [0, 0, 0, 1]])
    image = scan.Scan(np.array([0, 2, 4, 8], np.float32).reshape(1, 1, 4), affine, None, None)
    label, heart = np.array([[[0, 1, 2, 3]]]), np.array([[[False, False, True, True]]])
    hu, mask, inside, new = folder.to_grid(image, label, heart, {"kind": "linear", "spacing_mm": (1.0, 1.0, 2.0)})
    np.testing.assert_array_equal(hu, [[[1, 6]]])
    np.testing.assert_array_equal(mask, [[[1, 3]]])
    np.testing.assert_array_equal(inside, [[[0, 1]]])
    np.testing.assert_allclose(new @ [0, 0, 1, 1], [12.5, 20, 30, 1])


@pytest.mark.parametrize("grid", [{"kind": "cubic"}, {"spacing_mm": (1.0, 0.0, 1.0)}, {"spacing_mm": (1.0, 1.0)}])
def test_an_unusable_grid_is_named(scans, grid):
    with pytest.raises(
        ValueError, match=r"data\.grid: expected a kind among spline, linear, cells, native, slabs and three positive spacing_mm"
    ):
        open_quietly(scans.config | {"grid": COMMON["grid"] | grid})


def test_a_cohort_in_folds_comes_in_two_parts_a_source_split(config, monkeypatch):
    """Categories are worked out once; whoever tests a fold, its scans and the others are all of the split."""
    whole, config = open_quietly(config), config | {"folds": 3}
    parts = [open_quietly(config | {"fold": 0})]
    monkeypatch.setattr(folds, "category", None)
    parts += [open_quietly(config | {"fold": k}) for k in (1, 2)]
    ids = lambda source: [source[i]["id"] for i in range(len(source))]  # noqa: E731
    tested = [ids(part["source_train_test"]) for part in parts]
    assert sorted(itertools.chain(*tested)) == ids(whole["source_train"]) and [len(t) for t in tested] == [1, 1, 1]
    assert all(sorted(ids(part["source_train"]) + t) == ids(whole["source_train"]) for part, t in zip(parts, tested))
    assert all(set(part) == {"source_train", "source_train_test", "target_train"} for part in parts)
    with pytest.raises(ValueError, match=r"at least 4 records in split source_train, .* got 3 records"):
        open_quietly(config | {"folds": 4})


def test_overlay_codes_become_classes():
    found = folder.to_classes(np.array([[[0, 8, 9, 10, 15, 52, 57, 53, 58]]], np.int16), folder.OVERLAY)
    np.testing.assert_array_equal(found, [[[0, 1, 2, 3, 4, 4, 4, 5, 6]]], strict=False)
    with pytest.raises(ValueError, match=r"mask holds \[-1, 11\]"):
        folder.to_classes(np.array([11, -1, 8], np.int16), folder.OVERLAY)


def test_a_script_without_a_guard_ends_with_the_reason(tmp_path):
    """The processes that make scans import the script: its call there must fail, not wait for the one that waits for them."""
    script = tmp_path / "script.py"
    data = COMMON | {"kind": "phantom", "directory": str(tmp_path / "data"), "workers": 1, "seed": 0, "shape": (4, 16, 16)}
    data |= {"splits": {"source_train": {"protocol": "chest", "count": 1, "calcified": 0.0, "categories": (), "paired": False}}}
    script.write_text(f"from cacjax.data import cohorts\ncohorts.open({data!r}, progress=False)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode and "__main__" in done.stderr
