"""The heart: 3-D convolutions, the published network, whole scans by windows, and what scoring makes of it."""

import importlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import example_of, shrink, small_record, stand_in, stand_in_heart
from jax import lax
from scipy import ndimage

import cacjax.phantom
from cacjax import score as score_module
from cacjax import train
from cacjax.classes import AORTA, STRUCTURES
from cacjax.data import loader, phantom
from cacjax.files import scan
from cacjax.files.geometry import Acquisition
from cacjax.inference import windows
from cacjax.kernels import grids, losses
from cacjax.models import conv3d
from cacjax.models.resnet import EncoderDecoder
from cacjax.phantom import layers, make_scan
from cacjax.scoring import hearts, one_scan
from cacjax.task import build
from cacjax.tasks.heart import network
from cacjax.training.streams import streams_of

AXES = ("NDHWC", "DHWIO", "NDHWC")


def parameters(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 16, 1)))["params"]
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def test_published_parameter_count():
    assert parameters(EncoderDecoder()) == 386_942
    assert parameters(network(importlib.import_module("configs.heart").get_config("half"))) == 386_942
    # The heart network of van Velzen 2022 is of the same form.
    assert parameters(EncoderDecoder(width=16, blocks=9, classes=2)) == 2_149_298


@pytest.mark.parametrize("c, f, k", [(1, 4, 7), (5, 3, 3), (3, 6, 2)])
def test_convolution_by_slices_equals_the_convolution(c, f, k):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 9, 7, c)).astype(np.float32), rng.normal(size=(k, k, k, c, f)).astype(np.float32)
    plain, pull = jax.vjp(lambda x, w: lax.conv_general_dilated(x, w, (1, 1, 1), "VALID", dimension_numbers=AXES), x, kernel)
    ours, pull_ours = jax.vjp(conv3d.by_slices, x, kernel)
    for a, b in zip((ours, *pull_ours(plain)), (plain, *pull(plain))):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_strided_convolution_and_its_transpose():
    """Against XLA's own: stride 2 with padding 1, and the transposed one as PyTorch's padding 1, output_padding 1 makes it."""
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
    for step, options in (("down", {"window_strides": (2, 2, 2), "padding": [(1, 1)] * 3}), ("up", {"padding": [(1, 2)] * 3})):
        layer = conv3d.Conv3D(5, 3, step)
        variables = layer.init(jax.random.key(0), x)
        kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
        if step == "up":
            kernel, options = kernel[::-1, ::-1, ::-1], options | {"window_strides": (1, 1, 1), "lhs_dilation": (2, 2, 2)}
        expected = lax.conv_general_dilated(x, kernel, dimension_numbers=AXES, **options) + bias
        np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_any_sides_come_back():
    model = EncoderDecoder(width=1, blocks=1, classes=3, ends=3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))
    assert jax.eval_shape(model.apply, shapes, jnp.zeros((2, 5, 9, 7, 1))).shape == (2, 5, 9, 7, 3)


def test_soft_dice_by_hand():
    """Two classes on four voxels: class 1 is real in two, predicted with .5, .5, .5 and 0."""
    p = jnp.array([0.5, 0.5, 0.5, 0.0])
    dice = losses.soft_dice(jnp.stack([1 - p, p], -1), jnp.array([1, 1, 0, 0]))
    np.testing.assert_allclose(dice, [(2 * 1.5 + 1) / (2.5 + 2 + 1), (2 * 1.0 + 1) / (1.5 + 2 + 1)])


def test_windows_cover_a_scan_and_are_averaged():
    """A network that gives each voxel its HU, and the windows' positions no part in it; and one that tells the window's mean."""
    hu = np.random.default_rng(0).normal(size=(7, 20, 33)).astype(np.float32)
    sizes = set()

    def itself(block):
        sizes.add(block.shape[1:])
        return np.stack([block, -block], -1)

    found = windows.slide(itself, hu, window=16, overlap=4)
    np.testing.assert_allclose(found, np.stack([hu, -hu]), rtol=1e-5)
    assert sizes == {(8, 16, 16)}
    ones = windows.slide(lambda block: np.ones((*block.shape, 1)), hu, window=16, overlap=4)
    np.testing.assert_allclose(ones, 1)


def test_a_window_that_cuts_a_heart_does_not_outvote_the_one_that_sees_all():
    """A network that knows a heart by being whole: in a window whose edge cuts it, it finds nothing."""
    heart = np.zeros((16, 16, 40), np.float32)
    heart[4:12, 4:12, 12:20] = 1  # windows begin at 0, 8, 16 and 24: one sees it whole, two cut it

    def network(hu):
        found = hu * ~jnp.isin(1, hu[..., jnp.array([0, -1])])
        return jnp.stack([1 - found, found], -1)

    found = windows.slide(network, heart, window=16, overlap=8)
    np.testing.assert_array_equal(found[1] > found[0], heart)
    firsts = jnp.array(windows.corners(heart.shape, (16,) * 3, (8,) * 3))
    how = {"window": (16,) * 3, "classes": 2, "traced": False}
    sums = windows.add_up(lambda _, hu: network(hu), (), jnp.asarray(heart), jnp.array(heart.shape), firsts, len(firsts), **how)
    np.testing.assert_array_equal(sums[..., 1] > sums[..., 0], heart)


def image_of(hu, spacing_mm=(3.0, 1.0, 1.5), flips=(1, 1, 1)):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = np.array(spacing_mm) * flips
    affine[:3, 3], affine[3, 3] = (7.0, -4.0, 30.0), 1.0
    return scan.Scan(hu=np.asarray(hu, np.float32), affine=affine, path="p", acquisition=Acquisition())


def test_coarser_grid_lies_where_the_scan_lies():
    """Means over whole blocks: a linear ramp in millimetres stays one, and noise averages out."""
    shape = (12, 40, 30)
    image = image_of(np.zeros(shape), (1.0, 0.7, 0.7))
    z, y, x = np.indices(shape)
    ramp = (image.affine[0] @ np.stack([z, y, x, np.ones(shape)]).reshape(4, -1)).reshape(shape)
    hu, index = grids.coarsen(ramp, scan.spacing_mm(image.affine), (3.0, 3.0, 3.0))
    affine = image.affine @ index
    np.testing.assert_allclose(scan.spacing_mm(affine), 3.0)
    assert hu.shape == (4, 9, 7)
    index = np.stack([*np.indices(hu.shape), np.ones(hu.shape)]).reshape(4, -1)
    np.testing.assert_allclose(hu[:, :, :-1], (affine[0] @ index).reshape(hu.shape)[:, :, :-1], atol=1e-3)
    noisy, _ = grids.coarsen(np.random.default_rng(0).normal(0, 30, shape), (1.0, 0.7, 0.7), (3.0, 3.0, 3.0))
    assert noisy.std() < 10


def by_brightness(classes=8):
    """Stands in for a heart network on a 3 mm grid: 100 HU is class 1, 200 HU class 2 and so on."""

    def predict(hu):
        return np.moveaxis(np.eye(classes, dtype=np.float32)[np.clip(np.round(hu / 100), 0, classes - 1).astype(int)], -1, 0)

    return stand_in_heart(predict, (3.0, 3.0, 3.0), classes)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_structures_come_back_to_the_scan_and_specks_are_dropped(flips, any_heart):
    hu = np.zeros((30, 60, 60))
    hu[9:21, 12:48, 12:48] = 100  # 36 x 36 x 54 mm
    hu[9:21, 12:18, 12:48] = 600
    expected = np.round(hu / 100)
    hu[0:3, 54:57, 54:57] = 100  # a speck
    image = image_of(hu, flips=flips)
    heart = hearts.find(by_brightness(), image)
    wrong = heart.structures != expected
    assert heart.source == "network" and heart.structures[1, 55, 55] == 0
    assert not ndimage.binary_erosion(wrong, np.ones((2, 3, 3))).any()  # a voxel of the network's grid at the edges, no more
    np.testing.assert_array_equal(heart.mask, heart.structures == 1)
    told = hearts.describe(heart, image)
    assert told["from"] == "network" and told["structures_ml"]["LV cavity"] == pytest.approx(12 * 30 * 36 * 4.5 / 1000, rel=0.1)


def test_no_heart_is_refused():
    with pytest.raises(scan.ScanError, match="no_heart"):
        hearts.find(by_brightness(), image_of(np.zeros((8, 20, 20))))
    with pytest.raises(scan.ScanError, match="empty_heart"):
        hearts.find(np.zeros((8, 20, 20)), image_of(np.zeros((8, 20, 20))))


def test_what_is_no_heart_is_refused_by_number(ccta):
    """A phantom's own heart passes whole and cut; one without lungs, upside down, mirrored, of another size or with a chamber too large
    or missing is refused, each for its own reason."""
    mm, around = np.array([3.0, 2.2, 2.2]), ((1, 1), (0, 0), (0, 0))
    heart, hu = np.pad(ccta.structures, around), np.pad(ccta.hu, around, mode="edge")

    def found(structures, hu=hu, spacing_mm=mm):
        image = scan.Scan(hu.astype(np.float32), np.diag([*spacing_mm, 1.0])[[2, 1, 0, 3]], "p", Acquisition())
        return hearts.find(run_of_heart(structures), image)

    assert found(heart).flags == {}
    assert set(found(heart[:22], hu[:22]).flags) == {"heart_cut"}  # of the aorta and the left atrium next to nothing is in view
    chambers = np.where(heart == 1, 2, heart)
    cases = {
        "volume .. ml, expected 100 to 2500": (heart, hu, mm / 2.5),
        "volume 3... ml": (heart, hu, mm * 1.6),
        "lung beside it 0 %, expected 10 to 100": (heart, np.maximum(hu, -100)),
        "LV cavity 0 % of the chambers, expected 4 to 45": (chambers,),
        "LA behind RV by -.. mm, expected 15 to 130": (np.flip(heart, 1), np.flip(hu, 1)),
        "LV cavity left of RA by -.. mm, expected 20 to 160": (np.flip(heart, 2), np.flip(hu, 2)),
        "ascending aorta above LV cavity by -.. mm, expected 5 to 130": (np.flip(heart, 0), np.flip(hu, 0)),
    }
    for text, case in cases.items():
        with pytest.raises(scan.ScanError, match=text) as refusal:
            found(*case)
        assert refusal.value.code == "no_heart"


def run_of_heart(structures):
    run = stand_in_heart(None, (3.0, 3.0, 3.0))
    return run._replace(task=run.task._replace(segment=lambda state, hu, spacing_mm: structures))


@pytest.fixture(scope="module")
def ccta():
    return make_scan("ccta", 11, shape=(40, 72, 72), spacing_mm=(3.0, 2.2, 2.2))


def test_a_cohort_gives_structures_as_labels(monkeypatch):
    settings = {
        "seed": 1,
        "splits": {"a": {"protocol": "chest", "count": 1, "calcified": 0.0, "categories": (), "paired": False}},
        "shape": (4, 5, 6),
    }
    settings |= {"grid": {"kind": "linear", "spacing_mm": (3.0, 3.0, 3.0)}}
    made = {"label": np.ones((4, 5, 6)), "structures": np.full((4, 5, 6), 7)}
    fake = types.SimpleNamespace(
        hu=np.zeros((4, 5, 6)), heart=np.ones((4, 5, 6)), affine=np.eye(4), truth={"threshold_hu": 130.0, "aorta_hu": 40.0}, **made
    )
    monkeypatch.setitem(vars(cacjax.phantom), "make_scan", lambda *args, **grid: fake)
    both = [phantom.settings(settings | more) for more in ({"labels": "structures"}, {"labels": "classes"})]
    labels = [int(phantom.make(("a", 0, 1), settings=each)[0][0]["label"].max()) for each in both]
    assert labels == [7, 1]
    with pytest.raises(ValueError, match="classes, structures, marks, visible, got 'overlay'"):
        phantom.settings(settings | {"labels": "overlay"})


def test_structures_of_the_phantom(ccta):
    """Every class is there, within the pericardium where it is the heart's, at the HU of its compartment; names and numbers agree."""
    assert set(layers.STRUCTURES.values()) == set(range(1, len(STRUCTURES)))
    assert ccta.structures.dtype == np.uint8 and set(np.unique(ccta.structures)) == set(range(len(STRUCTURES)))
    heart = (ccta.structures > 0) & (ccta.structures != AORTA)
    assert (heart & ccta.heart).sum() > 0.97 * heart.sum() and ((ccta.structures > 0) & ccta.heart).sum() == ccta.heart.sum()
    inner = {
        name: ccta.clean[ndimage.binary_erosion(ccta.structures == number, iterations=2)].mean()
        for number, name in enumerate(STRUCTURES)
        if name in ("LV cavity", "LA", "ascending aorta")
    }
    # 15 % of bolus timing, the rest is hardening.
    assert inner["LV cavity"] == pytest.approx(inner["ascending aorta"], rel=0.18)
    assert inner["LA"] == pytest.approx(inner["ascending aorta"], rel=0.18)
    wall = np.median(ccta.clean[ccta.structures == STRUCTURES.index("LV myocardium")])
    assert 50 < wall < 180 < inner["ascending aorta"]


def small_config(steps=2):
    config = shrink(importlib.import_module("configs.heart").get_config("tiny,whole"), steps=steps)
    with config.unlocked():
        config.model.blocks = 1
    return config


def test_training_lowers_the_loss_on_one_batch(ccta):
    """The real task at toy width, blocks of one phantom: the dice of the chambers rises within a few steps."""
    config = small_config()
    with config.unlocked():
        config.model.width, config.streams.train.patch, config.optimiser.rate = 4, 16, 1e-2
    task = build(config)
    record = small_record(0) | {"hu": ccta.hu, "label": ccta.structures, "heart": ccta.heart.astype(np.uint8)}
    batch = next(loader.make_loader({"source_train": [record]}, streams_of(config.streams, task), seed=0, num_threads=0))
    state = jax.jit(lambda key: task.init(key, example_of(config), {}))(jax.random.key(0))
    step = jax.jit(task.train_step)
    found = []
    for _ in range(15):
        state, metrics = step(state, batch, jax.random.key(0))
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0] - 1
    probability = task.predict(state, ccta.hu[:15, :24, :21])
    assert probability.shape == (8, 15, 24, 21)
    np.testing.assert_allclose(probability.sum(0), 1, rtol=1e-4)


def test_scans_without_a_heart_train_too():
    """Phantoms of every scene can be made, and blocks about a heart are drawn anywhere where there is none."""
    config = importlib.import_module("configs.heart").get_config("tiny,whole,scenes")
    made = phantom.settings(config.data.to_dict())["splits"]["source_train"]
    assert {"chest:abdomen", "ccta:neck", "chest:head"} < set(made["protocol"].split(",")) and made["count"] == 72
    with pytest.raises(ValueError, match="and, of tiny, scenes"):
        importlib.import_module("configs.heart").get_config("half,scenes")
    config = small_config()
    record = small_record(0, shape=(16, 20, 24)) | {"heart": np.zeros((16, 20, 24), np.uint8), "label": np.zeros((16, 20, 24), np.uint8)}
    streams = streams_of(config.streams, build(config))
    batch = next(loader.make_loader({"source_train": [record]}, streams, seed=0, num_threads=0))
    assert batch["train"]["hu"].shape == (2, 9, 9, 9) and not batch["train"]["label"].any()


def test_classes_that_a_network_lacks_are_background():
    """The published six classes train on the phantom's eight."""
    config = small_config()
    with config.unlocked():
        config.model.classes = 6
    task = build(config)
    rng = np.random.default_rng(0)
    hu, label = rng.integers(-200, 400, (2, 9, 9, 9)), rng.integers(0, 8, (2, 9, 9, 9)).astype(np.uint8)
    state = jax.jit(lambda key: task.init(key, example_of(config), {}))(jax.random.key(0))
    step = jax.jit(lambda state, batch: task.train_step(state, batch, None)[1])
    results = [step(state, {"train": {"hu": hu, "label": each}}) for each in (label, np.where(label > 5, 0, label).astype(np.uint8))]
    assert results[0]["loss"] == results[1]["loss"]


def marks_bright(hu, wanted):
    """Stands in for a calcium detector: LAD from 700 HU."""
    label = ((hu >= 700) & wanted).astype(jnp.uint8)
    return label, label.astype(jnp.float32)


def test_heart_network_limits_detection_from_the_command_line(tmp_path, monkeypatch, any_heart):
    """A lesion in the heart is scored, one far off is not; the heart is written and serves as a mask; resuming minds the network."""
    spacing_mm = (3.0, 1.0, 1.5)
    hu = np.zeros((30, 60, 60), np.int16)
    hu[:, :, 57:] = -1000  # air
    hu[9:21, 12:48, 12:48] = 100
    hu[15, 30:33, 30:32] = 900
    hu[15, 54:58, 2:6] = 900
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(spacing_mm[::-1])
    sitk.WriteImage(image, str(tmp_path / "p.nii.gz"))
    workdir = tmp_path / "heart"
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    detector = stand_in(marks_bright, spacing_mm)
    monkeypatch.setattr(score_module, "_load", lambda path, ability, *what: by_brightness() if ability == "segment" else detector)

    def run(out, *more):
        assert score_module.main([str(tmp_path / "p.nii.gz"), "--workdir", "w", "--out", str(tmp_path / out), *map(str, more)]) == 0
        return json.loads((tmp_path / out / "p.json").read_text())

    volume = {out: record["rows"][0]["volume_mm3"] for out, record in {"all": run("all"), "one": run("one", "--heart", workdir)}.items()}
    assert volume == {"all": pytest.approx(22 * 4.5), "one": pytest.approx(6 * 4.5)}
    record = run("one", "--heart", workdir, "--resume")
    assert record["heart"]["from"] == "network" and record["settings"]["heart_checkpoint"][0] == 3
    assert {p.name for p in (tmp_path / "one").iterdir()} > {"p_heart.nii.gz", "p_heart.png"}
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "one" / "p_heart.nii.gz")))
    assert written[15, 20, 20] == 1 and not written[:8].any()
    again = run("mask", "--heart", tmp_path / "one" / "p_heart.nii.gz")
    assert again["heart"]["from"] == "mask" and again["rows"] == record["rows"]
    assert not (tmp_path / "mask" / "p_heart.nii.gz").exists()


def test_a_trained_heart_network_loads_and_answers(records, tmp_path):
    """Two steps of the real system at toy width, then through the same door as a detector."""
    train.train(small_config(), tmp_path)
    segmenter = score_module.load_heart(tmp_path)
    structures = segmenter.task.segment(segmenter.state, records["source_train"][0]["hu"], (3.0, 1.0, 1.5))
    assert structures.shape == records["source_train"][0]["hu"].shape and structures.dtype == np.uint8
    assert score_module.load_heart("mask.nii.gz") == "mask.nii.gz" and score_module.load_heart(None) is None


def test_a_limit_by_the_heart_is_the_same_from_mask_and_network(any_heart):
    hu = np.zeros((30, 60, 60))
    hu[9:21, 12:48, 12:48] = 100
    hu[15, 30:33, 30:32] = 900
    image = image_of(hu)
    detector = stand_in(marks_bright, (3.0, 1.0, 1.5))
    by_network = one_scan.score(image, detector=detector, heart=by_brightness())
    by_mask = one_scan.score(image, detector=detector, heart=by_network.heart)
    assert by_network.rows == by_mask.rows and by_mask.structures is None
    np.testing.assert_array_equal(by_network.mask, by_mask.mask)


def test_a_detector_is_no_heart_network(records, tmp_path):
    """And the other way round, and a run of a version that knew fewer settings: told before a scan is read."""
    train.train(small_config(), tmp_path / "heart")
    with pytest.raises(ValueError, match=r"a run of heart\.py, expected one that detects calcium"):
        score_module.load_detector(tmp_path / "heart")
    config = tmp_path / "heart" / "config.json"
    settings = json.loads(config.read_text())
    del settings["model"]
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"lacks the setting .*model.*: it is of another version"):
        score_module.load_heart(tmp_path / "heart")
