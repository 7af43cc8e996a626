"""Scans in and masks out: tiny series with unequal sides, flipped and oblique affines, and every reason for refusing."""

import gzip
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from cacjax.files import scan

QRM = pathlib.Path(os.environ.get("CACJAX_DATA_QRM", pathlib.Path(__file__).parents[2] / "shared/data/qrm-cci-canon"))
SHAPE = (6, 5, 4)
SPACING_MM = (2.5, 0.7, 0.6)
AXIAL = ((0, 0, 1), (0, 1, 0), (1, 0, 0))


def make_affine(axes=AXIAL, spacing_mm=SPACING_MM, origin=(-50.5, 20.25, 100.0)):
    """Columns are the unit vectors `axes` of array axes 0, 1, 2 times their spacing."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes, float).T * spacing_mm
    affine[:3, 3] = origin
    return affine


def tilted_axes(degrees):
    """Axes of an acquisition turned about x and then z by so much: oblique, at right angles."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x, about_z = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return (about_z @ about_x @ np.array(AXIAL, float).T).T


def voxels(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)


@pytest.fixture
def series(tmp_path):
    """A good CT series of six slices in a folder."""
    scan.write_dicom(voxels(), make_affine(), tmp_path / "ct", description="Cardiac 2.5", seed=1)
    return tmp_path / "ct"


def edit(folder, change, names="*"):
    """Rewrite slices of a folder: `change(data, index)`."""
    for index, path in enumerate(sorted(folder.glob(names))):
        data = pydicom.dcmread(path)
        change(data, index)
        data.save_as(path)


def put(**values):
    return lambda data, index: [setattr(data, tag, value) for tag, value in values.items()]


def code_of(path, **options):
    """The reason code for a path, the same from its headers alone and from reading it; its text names the path."""
    (source,) = scan.find([path], **options)
    with pytest.raises(scan.ScanError) as caught:
        scan.read(path, **options)
    assert caught.value.code in scan.REASONS and source.error is not None
    assert (source.error.code, str(source.error)) == (caught.value.code, str(caught.value))
    assert str(path) in str(caught.value) and "expected" in str(caught.value)
    return caught.value.code, str(caught.value)


# ---- reading


@pytest.mark.parametrize("axes", [AXIAL, tilted_axes(20), ((0, 1, 0), (0, 0, -1), (1, 0, 0)), ((0, 0, -1), (0, -1, 0), (1, 0, 0))])
def test_dicom_keeps_voxels_and_affine(tmp_path, axes):
    affine = make_affine(axes)
    scan.write_dicom(voxels(), affine, tmp_path / "ct", description="d", seed=3, kvp=100.0, contrast=True)
    result = scan.read(tmp_path / "ct")
    assert result.hu.dtype == np.float32 and result.affine.dtype == np.float64
    np.testing.assert_array_equal(result.hu, voxels())
    np.testing.assert_allclose(result.affine, affine, atol=1e-6)
    assert result.acquisition.kvp == 100.0 and result.acquisition.contrast is True
    assert result.acquisition.modality == "CT" and result.acquisition.manufacturer == "cacjax"


def test_slices_ascend_along_their_normal(tmp_path):
    """A series written from head to foot comes back turned over, with each voxel at its place in the patient."""
    affine = make_affine(((0, 0, -1), (0, 1, 0), (1, 0, 0)))
    scan.write_dicom(voxels(), affine, tmp_path / "ct", description="d", seed=3)
    result = scan.read(tmp_path / "ct")
    np.testing.assert_array_equal(result.hu, voxels()[::-1])
    np.testing.assert_allclose(result.affine @ (5, 1, 2, 1), affine @ (0, 1, 2, 1), atol=1e-9)


def test_each_slice_has_its_own_slope_and_intercept(series):
    def change(data, index):
        data.RescaleSlope, data.RescaleIntercept = 0.5 + 0.25 * index, -1000 + index

    stored = voxels().astype(np.float64) + 1024
    edit(series, change)
    index = np.arange(6)[:, None, None]
    np.testing.assert_allclose(scan.read(series).hu, stored * (0.5 + 0.25 * index) - 1000 + index, rtol=1e-6)


def test_increment_is_of_positions_not_thickness(series):
    edit(series, put(SliceThickness=5, SpacingBetweenSlices=9))
    result = scan.read(series)
    assert scan.spacing_mm(result.affine) == pytest.approx(SPACING_MM) and result.acquisition.slice_thickness_mm == 5


def test_names_and_order_of_files_do_not_matter(series):
    for index, path in enumerate(sorted(series.iterdir())):
        path.rename(series / f"{'fbcaed'[index]}00{index}")
    (series / "readme.txt").write_text("exported by hand")
    (series / "._a000.dcm").write_bytes(b"macOS")
    np.testing.assert_array_equal(scan.read(series).hu, voxels())


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian])
def test_uncompressed_transfer_syntaxes(series, syntax):
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path)
    np.testing.assert_array_equal(scan.read(series).hu, voxels())


@pytest.mark.parametrize("kind", ["RLE", "JPEG", "JPEG2000"])
def test_compressed_transfer_syntaxes(tmp_path, kind):
    """Lossless compression changes no voxel. (GDCM needs more than a few pixels.)"""
    hu = voxels((2, 48, 40))
    for path in scan.write_dicom(hu, make_affine(), tmp_path / "ct", description="d", seed=0):
        data = pydicom.dcmread(path)
        if kind == "RLE":
            data.compress(uid.RLELossless, generate_instance_uid=False)
        else:
            stored = sitk.GetImageFromArray(data.pixel_array[None])
            sitk.WriteImage(stored, str(tmp_path / "one.dcm"), useCompression=True, compressor=kind)
            twin = pydicom.dcmread(tmp_path / "one.dcm")
            data["PixelData"], data.file_meta.TransferSyntaxUID = twin["PixelData"], twin.file_meta.TransferSyntaxUID
        assert data.file_meta.TransferSyntaxUID.is_compressed
        data.save_as(path)
    np.testing.assert_array_equal(scan.read(tmp_path / "ct").hu, hu)


def test_dicom_without_preamble(series):
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
        data.save_as(path)
        content = path.read_bytes()
        path.write_bytes(content[144 + struct.unpack("<I", content[140:144])[0] :])
    np.testing.assert_array_equal(scan.read(series).hu, voxels())


def zip_of(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"study/{file.name}")
            archive.writestr(f"__MACOSX/._{file.name}", b"resource fork")
    return path


def test_zip_equals_folder(series, tmp_path):
    zipped, folder = scan.read(zip_of(series, tmp_path / "a.zip")), scan.read(series)
    np.testing.assert_array_equal(zipped.hu, folder.hu)
    np.testing.assert_array_equal(zipped.affine, folder.affine)
    assert zipped.acquisition == folder.acquisition


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "mha", "nrrd"])
@pytest.mark.parametrize("axes", [AXIAL, tilted_axes(-15), ((0, -1, 0), (1, 0, 0), (0, 0, 1))])
def test_volume_files_keep_voxels_and_affine(tmp_path, suffix, axes):
    path, affine = tmp_path / f"a.{suffix}", make_affine(axes)
    scan.write_image(voxels(), affine, path)
    result = scan.read(path)
    np.testing.assert_array_equal(result.hu, voxels())
    np.testing.assert_allclose(result.affine, affine, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert result.acquisition == scan.Acquisition()


def test_mhd_with_raw(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(voxels()), str(tmp_path / "a.mhd"))
    np.testing.assert_array_equal(scan.read(tmp_path / "a.mhd").hu, voxels())
    assert len(scan.find([tmp_path])) == 1
    (tmp_path / "a.raw").unlink()
    assert scan.find([tmp_path])[0].error is None
    with pytest.raises(scan.ScanError, match="truncated"):
        scan.read(tmp_path / "a.mhd")


def test_nifti_axes_are_turned_from_ras_to_lps(tmp_path):
    """A header drawn by hand: sform in RAS+ with 2 x 3 x 4 mm, so x and y change sign and only those."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, 4, 5, 6, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 4, 16)
    struct.pack_into("<4f", head, 76, 1, 2, 3, 4)
    struct.pack_into("<3f", head, 108, 352, 1, 0)
    struct.pack_into("<2h", head, 252, 0, 1)
    struct.pack_into("<12f", head, 280, 2, 0, 0, 10, 0, 3, 0, 20, 0, 0, 4, 30)
    head[344:348] = b"n+1\0"
    (tmp_path / "a.nii").write_bytes(bytes(head) + voxels().tobytes())
    result = scan.read(tmp_path / "a.nii")
    np.testing.assert_array_equal(result.hu, voxels())
    np.testing.assert_allclose(result.affine @ (1, 1, 1, 1), (-12, -23, 34, 1))
    struct.pack_into("<12f", head, 280, 2, 0, 0.6, 10, 0, 3, 0, 20, 0, 0, 4, 30)
    (tmp_path / "a.nii").write_bytes(bytes(head) + voxels().tobytes())
    assert code_of(tmp_path / "a.nii")[0] == "shear"


# ---- refusing


def shift(step):
    """Moves every slice by index x step (X, Y, Z) mm."""

    def change(data, index):
        data.ImagePositionPatient = [float(v) + index * s for v, s in zip(data.ImagePositionPatient, step)]

    return change


def test_missing_slice(series):
    (series / "IM0003.dcm").unlink()
    code, text = code_of(series)
    assert code == "missing_slice" and "1 of 6 slices" in text
    assert "5.000 mm between IM0002.dcm and IM0004.dcm" in text and "2.500 mm" in text


def test_duplicate_slice(series):
    shutil.copy(series / "IM0003.dcm", series / "copy.dcm")
    code, text = code_of(series)
    assert code == "duplicate_slice" and "IM0003.dcm" in text and "copy.dcm" in text


def test_uneven_increment(series):
    edit(series, shift((0, 0, 0.8)), "IM000[56].dcm")
    code, text = code_of(series)
    assert code == "uneven_increment" and "2.500 to 3.300 mm" in text


@pytest.mark.parametrize(("step_mm", "good"), [(0.02, True), (0.05, False)])
def test_increment_may_vary_by_one_percent(series, step_mm, good):
    edit(series, shift((0, 0, step_mm + 0.003)), "IM000[56].dcm")
    assert (scan.find([series])[0].error is None) == good


def test_positions_rounded_to_one_decimal_are_even(tmp_path):
    affine = make_affine(spacing_mm=(0.625, 0.5, 0.5))
    scan.write_dicom(voxels(), affine, tmp_path / "ct", description="d", seed=0)

    def rounded(data, index):
        data.ImagePositionPatient = [round(float(value), 1) for value in data.ImagePositionPatient]

    edit(tmp_path / "ct", rounded)
    assert scan.spacing_mm(scan.read(tmp_path / "ct").affine)[0] == pytest.approx(0.625, abs=0.02)


def test_gantry_tilt_in_degrees(series):
    edit(series, shift((0, 2.5 * np.tan(np.radians(12)), 0)))
    code, text = code_of(series)
    assert code == "gantry_tilt" and "12.00 degrees" in text


def test_slice_beside_its_stack(series):
    edit(series, put(ImagePositionPatient=[-48, 20.25, 105]), "IM0003.dcm")
    code, text = code_of(series)
    assert code == "shear" and "IM0003.dcm lies 2.50 mm" in text


def test_axes_not_at_right_angles(series):
    edit(series, put(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0]))
    assert code_of(series)[0] == "shear"


@pytest.mark.parametrize(
    ("change", "code", "number"),
    [
        (put(PixelSpacing=[0.7, 0.7]), "mixed_geometry", "[0.7, 0.6]"),
        (put(ImageOrientationPatient=[1, 0, 0, 0, 0.9848, 0.1736]), "mixed_geometry", "0.1736"),
        (put(RescaleSlope=None), "bad_header", "RescaleSlope"),
        (put(ImagePositionPatient=None), "bad_header", "ImagePositionPatient"),
        (put(PixelSpacing=[0, 0.6]), "bad_header", "PixelSpacing [0.0, 0.6]"),
        (put(RescaleType="MGML"), "not_hu", "MGML"),
        (put(NumberOfFrames=2, Rows=2), "multiframe", "2 frames"),
    ],
)
def test_one_odd_slice(series, change, code, number):
    edit(series, change, "IM0004.dcm")
    found, text = code_of(series)
    assert found == code and "IM0004.dcm" in text and number in text


def test_mr_series(series):
    edit(series, put(Modality="MR", SOPClassUID=uid.MRImageStorage))
    code, text = code_of(series)
    assert code == "not_ct" and "6 x MR" in text
    assert code_of(series / "IM0001.dcm")[0] == "not_ct"


def test_localizers_alone_and_beside_a_series(series, tmp_path):
    scout = series / "scout.dcm"
    shutil.copy(series / "IM0001.dcm", scout)
    edit(series, put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.3", Rows=4), "scout.dcm")
    assert scan.read(series).hu.shape == SHAPE
    (tmp_path / "scout").mkdir()
    scout.rename(tmp_path / "scout" / "scout.dcm")
    assert code_of(tmp_path / "scout")[0] == "not_ct"


def test_several_series_and_one_chosen(series, tmp_path):
    scan.write_dicom(voxels((3, 5, 4), 1), make_affine(), tmp_path / "b", description="Lung 1.0", seed=2)
    for path in (tmp_path / "b").iterdir():
        path.rename(series / f"lung{path.name}")
    code, text = code_of(series)
    uids = {key: pydicom.dcmread(series / f"{key}IM0001.dcm").SeriesInstanceUID for key in ("", "lung")}
    assert code == "several_series" and all(key in text for key in uids.values())
    assert '"Lung 1.0" 3 slices' in text and '"Cardiac 2.5" 6 slices' in text
    for choice in (uids["lung"], uids["lung"][-8:], "lung"):
        assert scan.read(series, series=choice).hu.shape == (3, 5, 4)
        assert scan.find(series, series=choice)[0].series_uid == uids["lung"]
    assert scan.read(scan.find(series)[0], series="cardiac").hu.shape == SHAPE
    assert code_of(series, series="bone")[0] == "series_not_found"
    assert code_of(series, series=".")[0] == "several_series"
    assert code_of(zip_of(series, tmp_path / "two.zip"))[0] == "several_series"


def test_stray_file_named_dcm_may_be_a_lost_slice(series):
    (series / "notes.dcm").write_text("these are no voxels")
    code, text = code_of(series)
    assert code == "not_dicom" and "notes.dcm" in text and "these are no vox" in text


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
def test_truncated_slice(series, keep):
    path = series / "IM0002.dcm"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    code, text = code_of(series)
    assert code == "truncated" and "IM0002.dcm" in text
    assert code_of(path)[0] == "truncated"


def test_a_cut_file_is_never_passed_over(series):
    """Wherever the last slice is cut, the series is refused: a missing end leaves no gap to notice."""
    path = series / "IM0006.dcm"
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        assert scan.find([series])[0].error is not None, length


def test_overlong_decimals_are_read_without_a_warning(series):
    for path in series.iterdir():
        content = path.read_bytes()
        assert content.count(b"-50.5\\20.25\\") == 1
        at = content.index(b"-50.5\\20.25\\")
        long = b"-50.50000000000000000000" + content[at + 5 : at + content[at - 2]]
        path.write_bytes(content[: at - 2] + struct.pack("<H", len(long)) + long + content[at + content[at - 2] :])
    assert scan.read(series).affine[0, 3] == -50.5


def test_truncated_compressed_slice(series):
    data = pydicom.dcmread(series / "IM0002.dcm")
    data.compress(uid.RLELossless, generate_instance_uid=False)
    data.save_as(series / "IM0002.dcm")
    content = (series / "IM0002.dcm").read_bytes()
    (series / "IM0002.dcm").write_bytes(content[:-20])
    assert code_of(series)[0] == "truncated"


def test_syntax_that_cannot_be_decoded(series):
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        data.PixelData = pydicom.encaps.encapsulate([b"no such codestream" * 4])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = uid.HTJ2KLossless
        data.save_as(path)
    assert scan.find(series)[0].error is None
    with pytest.raises(scan.ScanError, match=r"HTJ2K|High-Throughput") as caught:
        scan.read(series)
    assert caught.value.code == "unsupported_transfer_syntax"


def test_damaged_zips(series, tmp_path):
    good = zip_of(series, tmp_path / "good.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(good[: len(good) // 2])
    assert code_of(tmp_path / "cut.zip")[0] == "unreadable"
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert code_of(tmp_path / "none.zip")[0] == "empty_folder"


def test_paths_without_a_scan(series, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "readme.txt").write_text("no scan")
    assert code_of(tmp_path / "gone.nii.gz")[0] == "not_found"
    assert code_of(tmp_path / "empty")[0] == "empty_folder"
    assert code_of(tmp_path / "text")[0] == "empty_folder"
    assert code_of(tmp_path / "text" / "readme.txt")[0] == "unknown_format"
    assert code_of(series / "IM0001.dcm")[0] == "not_volume"


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "mha", "nrrd"])
def test_truncated_volume(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    scan.write_image(voxels((20, 30, 40)), make_affine(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(scan.ScanError, match="truncated"):
        scan.read(path)
    path.write_bytes(b"")
    assert code_of(path)[0] == "truncated"
    path.write_text("a text file, not a volume")
    assert code_of(path)[0] == "unreadable"


def test_gzip_of_several_members_is_whole(tmp_path):
    scan.write_image(voxels(), make_affine(), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(scan.read(tmp_path / "b.nii.gz").hu, voxels())


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "nrrd"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path, suffix, value):
    hu = voxels().astype(np.float32)
    hu[2, 1, 1:3] = value
    scan.write_image(hu, make_affine(), tmp_path / f"a.{suffix}", np.float32)
    with pytest.raises(scan.ScanError, match="2 voxels") as caught:
        scan.read(tmp_path / f"a.{suffix}")
    assert caught.value.code == "not_hu"


def test_values_without_contrast_are_not_hu(tmp_path):
    scan.write_image(np.linspace(0, 1, 120).reshape(SHAPE), make_affine(), tmp_path / "a.nii.gz", np.float32)
    with pytest.raises(scan.ScanError, match="not_hu"):
        scan.read(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (2, 6, 5, 4)])
def test_images_that_are_no_volume(tmp_path, shape):
    sitk.WriteImage(sitk.GetImageFromArray(voxels(shape), isVector=False), str(tmp_path / "a.nii.gz"))
    code, text = code_of(tmp_path / "a.nii.gz")
    assert code == "not_volume" and "4 x 5" in text


def test_sheared_mha(tmp_path):
    scan.write_image(voxels(), make_affine(), tmp_path / "a.mha")
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content.replace(b"Matrix = 1 0 0 0 1 0 0 0 1", b"Matrix = 1 0 0 0 1 0 .2 0 1"))
    code, text = code_of(tmp_path / "a.mha")
    assert code == "shear" and "78.69 degrees" in text


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(scan.ScanError("not_ct", "a: found b")))
    assert (error.code, error.message, str(error)) == ("not_ct", "a: found b", "a: found b [not_ct]")


# ---- finding


def test_one_row_for_each_scan_of_a_batch(series, tmp_path):
    """The bad and the good together: each is met once, and the good one is read."""
    for name in ("missing", "tilted", "mr"):
        shutil.copytree(series, tmp_path / "all" / name)
    series.rename(tmp_path / "all" / "good")
    (tmp_path / "all" / "missing" / "IM0003.dcm").unlink()
    edit(tmp_path / "all" / "tilted", shift((0, 0.5, 0)))
    edit(tmp_path / "all" / "mr", put(Modality="MR"))
    (tmp_path / "all" / "empty").mkdir()
    content = (tmp_path / "all" / "good" / "IM0001.dcm").read_bytes()
    (tmp_path / "all" / "cut.dcm").write_bytes(content[:-30])
    (tmp_path / "all" / "text.dcm").write_text("no voxels here")
    expected = {"missing": "missing_slice", "tilted": "gantry_tilt", "mr": "not_ct", "empty": "empty_folder"}
    expected |= {"cut": "truncated", "text": "not_dicom", "good": None}
    assert {s.name: s.error and s.error.code for s in scan.find([tmp_path / "all"])} == expected
    one_by_one = scan.find(sorted((tmp_path / "all").iterdir()))
    assert {s.name: s.error and s.error.code for s in one_by_one} == expected
    (good,) = (source for source in one_by_one if source.error is None)
    np.testing.assert_array_equal(scan.read(good).hu, voxels())


def test_masks_beside_a_scan_are_no_scans(series, tmp_path):
    for name in ("a", "a_label", "a_heart", "b_mask", "b"):
        scan.write_image(voxels(), make_affine(), tmp_path / f"{name}.nii.gz")
    (tmp_path / "truth.csv").write_text("scan\n")
    zip_of(series, tmp_path / "z.zip")
    assert [source.name for source in scan.find(tmp_path)] == ["a", "b", "ct", "z"]
    assert scan.find(tmp_path / "b_mask.nii.gz")[0].error is None
    with pytest.raises(scan.ScanError, match=r"4 scans \(a, b, ct, z\)"):
        scan.read(tmp_path)


def test_names_are_unique(tmp_path):
    for name in ("p1/ct.nii.gz", "p2/ct.nii.gz", "p2/ct.mha", "p 3/x.nii"):
        scan.write_image(voxels(), make_affine(), tmp_path / name)
    found = scan.find([tmp_path, tmp_path / "p1"])
    assert [source.name for source in found] == ["x", "p1_ct", "p2_ct", "p2_ct-2"]


def test_find_reads_no_voxels(series, monkeypatch):
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", lambda self: pytest.fail("voxels were read"))
    assert scan.find([series])[0].error is None


def test_links_in_circles_end(series):
    (series / "again").symlink_to(series, target_is_directory=True)
    assert len(scan.find(series)) == 1


# ---- masks and axes


@pytest.mark.parametrize("axes", [AXIAL, tilted_axes(20), ((0, -1, 0), (1, 0, 0), (0, 0, -1))])
@pytest.mark.parametrize("suffix", ["nii.gz", "mha", "nrrd"])
def test_mask_lies_on_the_input_grid(tmp_path, axes, suffix):
    image = scan.Scan(voxels().astype(np.float32), make_affine(axes), scan.Acquisition(), "a")
    mask = image.hu > 1500
    scan.write_mask(mask, image, tmp_path / f"m.{suffix}")
    np.testing.assert_array_equal(scan.read_mask(tmp_path / f"m.{suffix}", image), mask)
    stored = sitk.ReadImage(str(tmp_path / f"m.{suffix}"))
    assert stored.TransformIndexToPhysicalPoint((3, 2, 1)) == pytest.approx((image.affine @ (1, 2, 3, 1))[:3], abs=1e-4)


def test_mask_with_turned_axes_is_turned_back(tmp_path):
    image = scan.Scan(voxels().astype(np.float32), make_affine(tilted_axes(10)), scan.Acquisition(), "a")
    other = image.affine[:, [2, 0, 1, 3]].copy()
    other[:, 3] += other[:, 0] * 3
    other[:, 0] *= -1
    scan.write_image(voxels().transpose(2, 0, 1)[::-1], other, tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(scan.read_mask(tmp_path / "m.nii.gz", image), voxels())


def test_mask_on_another_grid_is_refused(tmp_path):
    image = scan.Scan(voxels().astype(np.float32), make_affine(), scan.Acquisition(), "a.nii.gz")
    moved = make_affine(origin=(-50.5, 20.25, 101.0))
    for shape, affine in ((SHAPE, moved), ((6, 5, 5), image.affine), (SHAPE, make_affine(tilted_axes(5)))):
        scan.write_image(np.ones(shape), affine, tmp_path / "m.nii.gz")
        with pytest.raises(scan.ScanError, match=r"m.nii.gz: a mask of 6 x 5 .*a.nii.gz.*grid_mismatch"):
            scan.read_mask(tmp_path / "m.nii.gz", image)
    scan.write_image(np.full(SHAPE, 0.5), image.affine, tmp_path / "m.nii.gz", np.float32)
    with pytest.raises(scan.ScanError, match="whole numbers"):
        scan.read_mask(tmp_path / "m.nii.gz", image)


def test_writing_refuses_what_would_not_fit(tmp_path):
    image = scan.Scan(voxels().astype(np.float32), make_affine(), scan.Acquisition(), "a")
    with pytest.raises(ValueError, match=r"shape \(6, 5, 4\), got \(5, 4, 6\)"):
        scan.write_mask(np.zeros((5, 4, 6), bool), image, tmp_path / "m.nii.gz")
    with pytest.raises(ValueError, match="got float32"):
        scan.write_mask(image.hu, image, tmp_path / "m.nii.gz")
    with pytest.raises(ValueError, match="must end in one of"):
        scan.write_mask(image.hu > 0, image, tmp_path / "m.mhd")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    scan.write_image(voxels(), make_affine(), path)
    before = path.read_bytes()

    def broken(image, name, **options):
        pathlib.Path(name).write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(sitk, "WriteImage", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        scan.write_image(voxels(seed=1), make_affine(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@given(axes=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from((-1, 1))] * 3), degrees=st.floats(-30, 30))
@settings(deadline=None, max_examples=40)
def test_oriented_and_back_is_exact(axes, signs, degrees):
    frame = np.array(tilted_axes(degrees))[list(axes)] * np.array(signs)[:, None]
    image = scan.Scan(voxels().astype(np.float32), make_affine(frame), scan.Acquisition(), "a")
    turned, twin = scan.oriented(image, voxels())
    np.testing.assert_array_equal(twin, turned.hu)
    np.testing.assert_array_equal(scan.restore(turned.hu, image), image.hu)
    channels = np.stack([turned.hu, -turned.hu], -1)
    np.testing.assert_array_equal(scan.restore(channels, image)[..., 1], -image.hu)
    assert (np.diag(turned.affine[:3, 2::-1]) > 0).all()
    for index in ((0, 0, 0), (2, 1, 3)):
        here = np.linalg.solve(image.affine, turned.affine @ (*index, 1)).round().astype(int)[:3]
        assert image.hu[tuple(here)] == turned.hu[index]


def test_oriented_runs_to_head_back_and_left():
    image = scan.Scan(voxels().astype(np.float32), make_affine(((0, 0, -1), (-1, 0, 0), (0, 1, 0))), scan.Acquisition(), "a")
    turned = scan.oriented(image)
    np.testing.assert_array_equal(turned.hu, voxels()[::-1, ::-1].transpose(0, 2, 1))
    np.testing.assert_allclose(turned.affine[:3, :3], np.diag((2.5, 0.6, 0.7))[::-1, :][[0, 1, 2]][:, [0, 1, 2]])
    with pytest.raises(ValueError, match="grid's shape"):
        scan.oriented(image, np.zeros((4, 5, 6)))


# ---- writing DICOM


def test_written_series_is_deterministic_and_valid(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        scan.write_dicom(voxels(), make_affine(), tmp_path / name, description="CCTA", seed=seed)
    first, second, third = (sorted((tmp_path / name).iterdir()) for name in "abc")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    heads = [pydicom.dcmread(path) for path in first]
    assert len({head.SOPInstanceUID for head in heads}) == 6 and len({head.SeriesInstanceUID for head in heads}) == 1
    assert heads[0].SeriesInstanceUID != pydicom.dcmread(third[0]).SeriesInstanceUID
    np.testing.assert_array_equal(heads[2].pixel_array.astype(int) + int(heads[2].RescaleIntercept), voxels()[2])


def test_written_series_replaces_its_own_kind_only(tmp_path):
    scan.write_dicom(voxels(), make_affine(), tmp_path / "a", description="d", seed=1)
    scan.write_dicom(voxels((3, 5, 4)), make_affine(), tmp_path / "a", description="d", seed=1)
    assert len(list((tmp_path / "a").iterdir())) == 3
    (tmp_path / "a" / "thesis.tex").write_text("keep me")
    with pytest.raises(FileExistsError, match="must be empty"):
        scan.write_dicom(voxels(), make_affine(), tmp_path / "a", description="d", seed=1)
    assert (tmp_path / "a" / "thesis.tex").exists()


# ---- a real scan


@pytest.mark.skipif(not QRM.exists(), reason="needs the QRM phantom scan; CACJAX_DATA_QRM names its folder")
def test_real_scanner_series():
    """Canon Aquilion ONE, files without suffix; voxels above 130 HU in insert 1 as counted by two other programs."""
    image = scan.read(QRM / "dicom")
    assert image.hu.shape == (47, 512, 512)
    assert scan.spacing_mm(image.affine) == pytest.approx((3.0, 0.488, 0.488), rel=1e-6)
    assert image.acquisition.kvp == 120 and image.acquisition.kernel == "FC12"
    regions = scan.read_mask(QRM / "insert_regions.nii.gz", image)
    assert set(np.unique(regions)) == set(range(10))
    assert [int(((regions[z] == 1) & (image.hu[z] >= 130)).sum()) for z in (21, 22, 23)] == [128, 175, 120]
    assert image.hu[regions == 1].max() == 1275
    assert [source.name for source in scan.find(QRM)] == ["dicom"]
