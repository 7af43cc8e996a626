"""Files as they come: linked, cut, archived, mis-tagged, of other values than HU. Each is refused with its reason, at once."""

import gzip
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import uid

from cacjax.files import archive, hounsfield, manifest, pixel_data, scan

SHAPE = (8, 72, 64)
SPACING_MM = (3.0, 0.7, 0.6)
AFFINE = np.array([[0, 0, 0.6, -20], [0, 0.7, 0, -25], [3.0, 0, 0, 100], [0, 0, 0, 1]])
DICOM_NAMES = [f"IM{index + 1:04d}.dcm" for index in range(SHAPE[0])]


def thorax(shape=SHAPE, seed=0):
    """Air, lungs, fat, muscle, blood, bone and a calcification, with noise, clipped at -1024."""
    hu = np.full(shape, -1000.0)
    y, x = (np.linspace(-1, 1, size) for size in shape[1:])
    radius = np.hypot(y[:, None], x[None, :])
    for limit, value in ((0.95, -100), (0.85, 50), (0.75, -850), (0.5, 40), (0.2, 300)):
        hu[:, radius < limit] = value
    hu[:, shape[1] // 2 : shape[1] // 2 + 4, :3] = 900
    hu[2:4, shape[1] // 2, shape[2] // 2] = 700
    return np.clip(hu + np.random.default_rng(seed).normal(0, 15, shape), -1024, 3071).round().astype(np.int16)


@pytest.fixture
def series(tmp_path):
    """A good series in a folder."""
    scan.write_dicom(thorax(), AFFINE, tmp_path / "ct", description="Cardiac 3.0", seed=1)
    return tmp_path / "ct"


def edit(folder, names=DICOM_NAMES, **values):
    """Set values of the header of slices; None removes one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            data = pydicom.dcmread(folder / name)
            for tag, value in values.items():
                if value is None:
                    del data[tag]
                else:
                    setattr(data, tag, value)
            data.save_as(folder / name)


def refusal(path, **options):
    """(code, message) of the one refusal of a path, by reading it; headers alone never raise."""
    (source,) = scan.find([path], **options)
    with pytest.raises(scan.ScanError) as caught:
        scan.read(source)
    assert caught.value.code in scan.REASONS and "expected" in caught.value.message
    str(caught.value).encode()
    return caught.value.code, caught.value.message


def nifti(hu=None, order="<", extra=b"", **values):
    """Bytes of a NIfTI-1 file drawn by hand, sform and qform alike; values: fields in place of the right ones."""
    hu = thorax() if hu is None else hu
    dz, dy, dx = SPACING_MM
    fields = {
        "length": (0, "i", 348),
        "dim": (40, "8h", (3, *hu.shape[::-1], 1, 1, 1, 1)),
        "datatype": (70, "h", {"int16": 4, "uint16": 512, "float32": 16, "uint8": 2}[hu.dtype.name]),
        "bitpix": (72, "h", 8 * hu.itemsize),
        "pixdim": (76, "8f", (1, dx, dy, dz, 1, 1, 1, 1)),
        "vox_offset": (108, "f", 352),
        "scl_slope": (112, "f", 1),
        "scl_inter": (116, "f", 0),
        "units": (123, "B", 2),
        "qform_code": (252, "h", 1),
        "sform_code": (254, "h", 1),
        "quatern": (256, "6f", (0, 0, 0, -20, -25, 100)),
        "srow": (280, "12f", (dx, 0, 0, -20, 0, dy, 0, -25, 0, 0, dz, 100)),
        "magic": (344, "4s", b"n+1\0"),
    }
    head = bytearray(352)
    for name, (at, form, value) in fields.items():
        value = values.get(name, value)
        struct.pack_into(order + form, head, at, *(value if isinstance(value, tuple) else (value,)))
    return bytes(head) + hu.astype(hu.dtype.newbyteorder(order)).tobytes() + extra


def meta(body=None, **values):
    """Bytes of an MHA file with these fields in place of the right ones; None leaves one out."""
    fields = {"ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False, "CompressedData": False}
    fields |= {"TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-20 -25 100", "ElementSpacing": ".6 .7 3", "DimSize": "64 72 8"}
    fields |= {"ElementType": "MET_SHORT"} | values | {"ElementDataFile": "LOCAL"}
    lines = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    return lines.encode() + (thorax().tobytes() if body is None else body)


def nrrd(body=None, **values):
    """Bytes of an NRRD file with these fields (underscores for blanks) in place of the right ones; None leaves one out."""
    fields = {"type": "short", "dimension": 3, "space": "left-posterior-superior", "sizes": "64 72 8"}
    fields |= {"space_directions": "(.6,0,0) (0,.7,0) (0,0,3)", "endian": "little", "encoding": "raw", "space_origin": "(-20,-25,100)"}
    lines = "".join(f"{name.replace('_', ' ')}: {value}\n" for name, value in (fields | values).items() if value is not None)
    return b"NRRD0004\n" + lines.encode() + b"\n" + (thorax().tobytes() if body is None else body)


@pytest.mark.parametrize(("name", "make"), [("a.nii", nifti), ("a.mha", meta), ("a.nrrd", nrrd)])
def test_files_drawn_by_hand_are_read(tmp_path, name, make):
    (tmp_path / name).write_bytes(make())
    image = scan.read(tmp_path / name)
    np.testing.assert_array_equal(image.hu, thorax())
    affine = AFFINE if name != "a.nii" else AFFINE * [[-1], [-1], [1], [1]]
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)


# ---- file systems


def test_a_link_to_itself_is_one_refusal(series, tmp_path):
    shutil.copytree(series, tmp_path / "good")
    (series / "IM0009.dcm").symlink_to(series / "IM0009.dcm")
    found = scan.find([series, tmp_path / "good"])
    assert [source.error and source.error.code for source in found] == ["unreadable", None]
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    assert refusal(tmp_path / "loop.nii.gz")[0] == "unreadable"


def test_a_slice_that_is_a_link_to_nothing_is_not_passed_over(series):
    (series / DICOM_NAMES[-1]).unlink()
    (series / DICOM_NAMES[-1]).symlink_to(series / "gone")
    code, text = refusal(series)
    assert code == "unreadable" and DICOM_NAMES[-1] in text


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd", "a.zip", "a.dcm", "a", "ct/a", "ct/IM0009.dcm"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_opened(series, tmp_path, name, kind):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    code, text = refusal(path.parent if name.startswith("ct/") else path)
    assert code == "unreadable" and {"pipe": "a named pipe", "device": "a device"}[kind] in text


@pytest.fixture
def unprivileged():
    """A folder that all may enter; the test runs as a user whom permissions bind."""
    folder = pathlib.Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    yield folder, lambda: os.seteuid(65534) if user == 0 else None
    os.seteuid(user)
    for place, folders, _ in os.walk(folder):
        for inside in folders:
            os.chmod(os.path.join(place, inside), 0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_what_may_not_be_read_is_a_refusal(unprivileged, mode):
    folder, drop = unprivileged
    scan.write_dicom(thorax(), AFFINE, folder / "closed", description="d", seed=1)
    (folder / "closed" / "manifest.csv").write_text("scan\n")
    scan.write_image(thorax(), AFFINE, folder / "closed.nii.gz")
    scan.write_image(thorax(), AFFINE, folder / "good.nii.gz")
    shutil.copytree(folder / "closed", folder / "slice")
    (folder / "slice" / DICOM_NAMES[3]).chmod(0)
    (folder / "closed.nii.gz").chmod(0)
    (folder / "closed").chmod(mode)
    drop()
    assert manifest.locate(folder / "closed") is None
    found = {source.name: source.error and source.error.code for source in scan.find([folder])}
    assert found.pop("good") is None
    assert len(found) >= 3 and set(found.values()) == {"unreadable"}
    named = scan.find([folder / name for name in ("closed", "closed/IM0001.dcm", "closed.nii.gz", "slice")])
    assert len(named) >= 4 and {source.error.code for source in named} == {"unreadable"}


def test_a_manifest_that_cannot_be_read(unprivileged):
    folder, drop = unprivileged
    (folder / "manifest.csv").write_bytes("scan\nM\xfcller.nii.gz\n".encode("latin-1"))
    with pytest.raises(manifest.ManifestError, match=r"manifest\.csv: expected a table in UTF-8"):
        manifest.read(folder)
    (folder / "manifest.csv").chmod(0)
    drop()
    with pytest.raises(manifest.ManifestError, match=r"manifest\.csv: .*PermissionError"):
        manifest.read(folder)


@pytest.mark.parametrize("suffix", ["", ".zip", ".nii.gz", ".nii", ".mha", ".nrrd"])
def test_latin_1_names_are_read(series, tmp_path, suffix):
    place = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    place.mkdir()
    path = place / os.fsdecode(b"J\xf6rg" + suffix.encode())
    if suffix == "":
        series.rename(path)
        for slices in path.iterdir():
            slices.rename(slices.with_name(os.fsdecode(b"\xe4" + os.fsencode(slices.name))))
    elif suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for file in series.iterdir():
                packed.write(file, file.name)
    else:
        scan.write_image(thorax(), AFFINE, tmp_path / f"a{suffix}")
        (tmp_path / f"a{suffix}").rename(path)
    (source,) = scan.find([place])
    np.testing.assert_array_equal(scan.read(source).hu, thorax())
    assert source.name == "J_rg"
    if suffix == ".nii":
        path.write_bytes(b"no header")
        assert "\\xf6" in refusal(path)[1] or "\\udcf6" in refusal(path)[1]


def test_long_names(series, tmp_path):
    long = tmp_path / ("p" * 240)
    series.rename(long)
    shutil.copytree(long, tmp_path / ("p" * 241))
    found = scan.find([long, tmp_path / ("p" * 241), tmp_path / ("q" * 300)])
    assert [source.error and source.error.code for source in found] == [None, None, "unreadable"]
    assert len({source.name for source in found}) == 3
    for source in found:
        assert len(os.fsencode(f"{source.name}_probability.nii.gz")) < 200
    np.testing.assert_array_equal(scan.read(found[1]).hu, thorax())


# ---- a row for each scan


def test_masks_without_their_scan_are_scans(tmp_path):
    for name in ("P1", "P1_label", "P2_heart", "P3_mask", "sub/CT_label", "out/P9_mask", "out/P9_detected"):
        scan.write_image(thorax(), AFFINE, tmp_path / f"{name}.nii.gz")
    (tmp_path / "out" / "P9.json").write_text("{}")
    assert [source.name for source in scan.find([tmp_path])] == ["P1", "P2_heart", "P3_mask", "CT_label"]
    named = [tmp_path / f"{name}.nii.gz" for name in ("P1", "P1_label", "P2_heart", "sub/CT_label", "out/P9_detected")]
    assert len(scan.find(named)) == 5


def test_links_to_one_file_are_a_row_each(tmp_path):
    scan.write_image(thorax(), AFFINE, tmp_path / "P1.nii.gz")
    (tmp_path / "P2_heart.nii.gz").symlink_to(tmp_path / "P1.nii.gz")
    assert len(scan.find([tmp_path / "P1.nii.gz", tmp_path / "P2_heart.nii.gz", tmp_path / "P1.nii.gz"])) == 2


@pytest.mark.parametrize("lengths", [range(100, 1200, 100), range(0, 133, 12), range(600, 9000, 1000)])
def test_a_folder_of_cut_files_is_one_row(tmp_path, lengths):
    hu = thorax((len(lengths), *SHAPE[1:]))
    for path, length in zip(scan.write_dicom(hu, AFFINE, tmp_path / "cut", description="d", seed=0), lengths):
        path.write_bytes(path.read_bytes()[:length])
    (source,) = scan.find([tmp_path])
    assert (source.name, source.error.code) == ("cut", "truncated")
    assert f"{len(lengths) - 1} more files" in source.error.message


# ---- zips


def zipped(series, path, extra=()):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for file in sorted(series.iterdir()):
            packed.write(file, file.name)
        for name, content in extra:
            packed.writestr(name, content)
    return path


def test_a_zip_with_one_name_twice(series, tmp_path):
    again = (series / DICOM_NAMES[2]).read_bytes()
    code, text = refusal(zipped(series, tmp_path / "a.zip", [(DICOM_NAMES[2], again[:-2] + b"\0\0")]))
    assert code == "corrupt" and DICOM_NAMES[2] in text


def test_a_zip_whose_names_point_outside(series, tmp_path):
    """It is read, for nothing is unpacked by its name."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in series.iterdir():
            archive.writestr(f"../../{file.name}", file.read_bytes())
    np.testing.assert_array_equal(scan.read(tmp_path / "a.zip").hu, scan.read(series).hu)


def test_bytes_without_end_behind_the_pixels(series, tmp_path):
    """GDCM reads zeros as elements, each of which takes memory."""
    path = series / DICOM_NAMES[2]
    path.write_bytes(path.read_bytes() + bytes(1000))
    np.testing.assert_array_equal(scan.read(series).hu, thorax())
    path.write_bytes(path.read_bytes() + bytes(1 << 20))
    for given in (series, zipped(series, tmp_path / "a.zip")):
        code, text = refusal(given)
        assert code == "corrupt" and DICOM_NAMES[2] in text and "bytes after the pixels" in text


@pytest.mark.parametrize(("name", "limit"), [("MOST_UNPACKED", 50000), ("MOST_BYTES", 9000)])
def test_archives_have_a_limit(series, tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(pixel_data if name == "MOST_BYTES" else archive, name, limit)
    code, text = refusal(zipped(series, tmp_path / "a.zip"))
    assert code == "too_large" and str(limit) in text


def test_a_deflated_slice_has_a_limit(series, monkeypatch):
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
        data.save_as(path)
    np.testing.assert_array_equal(scan.read(series).hu, thorax())
    monkeypatch.setattr(pixel_data, "MOST_BYTES", 9000)
    assert refusal(series)[0] == "too_large"


# ---- headers of DICOM


@pytest.mark.parametrize(
    ("values", "code", "told"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, "bad_header", "MONOCHROME1"),
        ({"RescaleSlope": "0"}, "rescale", "RescaleSlope is 0"),
        ({"RescaleSlope": "-1"}, "rescale", "RescaleSlope is -1"),
        ({"RescaleSlope": "1e30"}, "rescale", "RescaleSlope is 1e+30"),
        ({"RescaleSlope": "nan"}, "rescale", "RescaleSlope is nan"),
        ({"RescaleSlope": "inf"}, "rescale", "RescaleSlope is inf"),
        ({"RescaleIntercept": "1e30"}, "rescale", "RescaleIntercept is 1e+30"),
        ({"RescaleIntercept": "nan"}, "rescale", "RescaleIntercept is nan"),
        ({"BitsAllocated": 8}, "bad_header", "BitsAllocated 8"),
        ({"BitsAllocated": 12}, "bad_header", "BitsAllocated 12"),
        ({"BitsStored": 17}, "bad_header", "BitsStored 17"),
        ({"HighBit": 11}, "bad_header", "HighBit 11"),
        ({"PixelRepresentation": None}, "bad_header", "PixelRepresentation absent"),
        ({"NumberOfFrames": "-1"}, "bad_header", "NumberOfFrames -1"),
        ({"Rows": 36}, "bad_header", "Rows 36"),
        ({"PixelSpacing": [1e30, 1e30]}, "bad_geometry", "1e+30"),
        ({"PixelSpacing": [0.0001, 0.0001]}, "bad_geometry", "0.0001"),
    ],
)
@pytest.mark.parametrize("all_slices", [True, False])
def test_headers_of_dicom(series, values, code, told, all_slices):
    names = DICOM_NAMES if all_slices else DICOM_NAMES[3:4]
    edit(series, names, **values)
    found, text = refusal(series)
    assert found == code or (not all_slices and found == "mixed_geometry" and ("Rows" in values or "PixelSpacing" in values))
    if all_slices:
        assert told in text
    elif found == code:
        assert DICOM_NAMES[3] in text


@pytest.mark.parametrize("values", [{"Modality": "Ct"}, {"SOPClassUID": "1.2.3"}, {"SeriesInstanceUID": None}, {"SamplesPerPixel": 3}])
def test_a_slice_is_not_lost_for_its_header(series, values):
    """The last slice leaves no gap; without it the series would be read."""
    edit(series, DICOM_NAMES[-1:], **values)
    code, text = refusal(series)
    assert code == "bad_header" and DICOM_NAMES[-1] in text


def relabel(path, syntax):
    """Exchange the transfer syntax in the file's meta information, its pixels left as they are."""
    content = path.read_bytes()
    old = str(pydicom.dcmread(path).file_meta.TransferSyntaxUID)
    old, new = (text.encode() + b"\0" * (len(text) % 2) for text in (old, str(syntax)))
    at = content.index(old, 132)
    length = struct.unpack("<I", content[140:144])[0] + len(new) - len(old)
    head = content[:140] + struct.pack("<I", length) + content[144 : at - 2] + struct.pack("<H", len(new)) + new
    path.write_bytes(head + content[at + len(old) :])


OTHERS = (uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLossless)
OTHERS += (uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGBaseline8Bit)


@pytest.mark.parametrize("syntax", OTHERS, ids=lambda syntax: syntax.name)
def test_transfer_syntax_that_is_not_the_files(series, syntax):
    for path in series.iterdir():
        relabel(path, syntax)
    code, text = refusal(series)
    assert code == ("unreadable" if syntax.is_deflated else "bad_header")
    assert syntax.is_deflated or str(syntax) in text


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, *OTHERS[4:]], ids=lambda syntax: syntax.name)
def test_compressed_pixels_that_are_not_as_said(series, syntax):
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        data.compress(uid.RLELossless, generate_instance_uid=False)
        data.save_as(path)
    np.testing.assert_array_equal(scan.read(series).hu, thorax())
    for path in series.iterdir():
        relabel(path, syntax)
    code, text = refusal(series)
    assert code == "bad_header" and ("RLE" in text or "fragments" in text)


@pytest.mark.parametrize(
    ("values", "lossy"), [({"LossyImageCompression": "01"}, True), ({"LossyImageCompression": "00"}, False), ({}, False)]
)
def test_lossy_compression_is_flagged(series, values, lossy):
    edit(series, DICOM_NAMES[2:3], **values)
    flags = scan.read(series).acquisition.flags
    assert flags == (("lossy_compression",) if lossy else ()) and set(flags) <= scan.FLAGS.keys()


def test_lossy_syntax_is_flagged(series, tmp_path):
    for path in series.iterdir():
        data = pydicom.dcmread(path)
        image = sitk.GetImageFromArray(data.pixel_array[None])
        sitk.WriteImage(image, str(tmp_path / "one.dcm"), useCompression=True, compressor="JPEG2000")
        twin = pydicom.dcmread(tmp_path / "one.dcm")
        data["PixelData"], data.file_meta.TransferSyntaxUID = twin["PixelData"], uid.JPEG2000
        data.save_as(path)
    assert scan.read(series).acquisition.flags == ("lossy_compression",)


@pytest.mark.parametrize("moved", [range(8), range(4, 8), range(1, 8, 2)])
def test_increments_of_rounded_decimals_are_as_the_positions_say(series, moved):
    for index, name in enumerate(DICOM_NAMES):
        beyond = 0.0002 * (index if len(moved) == 8 else index in moved)
        edit(series, [name], ImagePositionPatient=[-20, -25, round(100 + 3 * index + beyond, 4)], SliceThickness=3)
    thickness_mm = scan.spacing_mm(scan.read(series).affine)[0]
    assert thickness_mm == pytest.approx(3.0002 if len(moved) == 8 else 3 + 0.0002 / 7, abs=1e-9)


# ---- headers of volumes


@pytest.mark.parametrize(
    ("values", "code", "told"),
    [
        ({"DimSize": "a b c"}, "bad_header", "DimSize"),
        ({"DimSize": "10 10"}, "bad_header", "DimSize"),
        ({"DimSize": "-64 72 8"}, "bad_header", "-64"),
        ({"DimSize": "64 72 0"}, "bad_header", "64 x 72 x 0"),
        ({"DimSize": "1e1 72 8"}, "bad_header", "1e1"),
        ({"DimSize": "99999 99999 99999"}, "too_large", "99999 x 99999 x 99999"),
        ({"DimSize": "64 72 9"}, "truncated", "of 82944 bytes"),
        ({"DimSize": "64 72 7"}, "bad_header", "73728 bytes"),
        ({"NDims": 100000}, "bad_header", "NDims"),
        ({"NDims": -1}, "bad_header", "NDims"),
        ({"NDims": "three"}, "bad_header", "three"),
        ({"NDims": 2, "DimSize": "64 72"}, "not_volume", "64 x 72"),
        ({"ElementType": "MET_STRING"}, "bad_header", "MET_STRING"),
        ({"ElementType": "MET_UCHAR"}, "bad_header", "36864"),
        ({"ElementType": None}, "bad_header", "ElementType"),
        ({"ElementNumberOfChannels": 3}, "not_volume", "3 value(s)"),
        ({"ElementSpacing": "0 .7 3"}, "bad_header", "3 positive numbers"),
        ({"ElementSpacing": ".6 .7"}, "bad_header", "3 positive numbers"),
        ({"ElementSpacing": "-.6 .7 3"}, "bad_header", "3 positive numbers"),
        ({"ElementSpacing": ".6 .7 inf"}, "bad_header", "inf"),
        ({"ElementSpacing": None}, "bad_header", "ElementSpacing"),
        ({"ElementSpacing": ".6 .7 1e30"}, "bad_geometry", "1e+30"),
        ({"Offset": "0 0 nan"}, "bad_header", "nan"),
        ({"Offset": "0 0 1e30"}, "bad_geometry", "1e+30"),
        ({"TransformMatrix": "1 0 0"}, "bad_header", "9 finite numbers"),
        ({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, "", ""),
        ({"CompressedData": True}, "corrupt", "gzip or zlib"),
        ({"CompressedData": "perhaps"}, "bad_header", "perhaps"),
        ({"BinaryData": False}, "bad_header", "BinaryData"),
        ({"BinaryDataByteOrderMSB": True}, "corrupt", "two bytes"),
        ({"ElementToIntensityFunctionSlope": "-1"}, "rescale", "ElementToIntensityFunctionSlope is -1"),
        ({"DistanceUnits": "um"}, "bad_geometry", "um"),
        ({"HeaderSize": -7}, "bad_header", "HeaderSize"),
    ],
)
def test_headers_of_mha(tmp_path, values, code, told):
    (tmp_path / "a.mha").write_bytes(meta(**values))
    found, text = refusal(tmp_path / "a.mha")
    assert (found == code or not code) and told in text


@pytest.mark.parametrize(
    ("make", "name", "damage"), [(meta, "a.mha", b"Offset ? "), (nrrd, "a.nrrd", b"\nspace orihin:"), (nrrd, "a.nrrd", b"\n?:")]
)
def test_lines_that_are_no_field(tmp_path, make, name, damage):
    right = b"Offset = " if make is meta else b"\nspace origin:"
    (tmp_path / name).write_bytes(make().replace(right, damage))
    assert refusal(tmp_path / name)[0] == "bad_header"
    (tmp_path / "b.nrrd").write_bytes(nrrd().replace(b"\nspace origin:", b"\n# a remark\nkey:=value\nspace origin:"))
    np.testing.assert_array_equal(scan.read(tmp_path / "b.nrrd").hu, thorax())


def test_mha_names_a_field_twice(tmp_path):
    (tmp_path / "a.mha").write_bytes(meta().replace(b"DimSize", b"DimSize = 8 8 8\nDimSize"))
    assert refusal(tmp_path / "a.mha")[0] == "bad_header"


@pytest.mark.parametrize("data", ["a%03d.raw", "LIST", "gone.raw", "/dev/zero", "."])
def test_voxels_beside_a_header(tmp_path, data):
    (tmp_path / "a.mhd").write_bytes(meta(b"").replace(b"LOCAL", data.encode()))
    assert refusal(tmp_path / "a.mhd")[0] in ("bad_header", "truncated", "unreadable")


@pytest.mark.parametrize(
    ("values", "code", "told"),
    [
        ({"encoding": "gzip"}, "corrupt", "gzip"),
        ({"encoding": "ascii"}, "bad_header", "ascii"),
        ({"encoding": None}, "bad_header", "encoding"),
        ({"endian": "big"}, "corrupt", "two bytes"),
        ({"endian": None}, "bad_header", "endian"),
        ({"sizes": "99999 99999 99999"}, "too_large", "99999"),
        ({"sizes": "64 72"}, "bad_header", "sizes"),
        ({"sizes": "64 72 9"}, "truncated", "82944"),
        ({"dimension": "many"}, "bad_header", "dimension"),
        ({"dimension": 4, "sizes": "64 72 4 2"}, "not_volume", "64 x 72 x 4 x 2"),
        ({"kinds": "vector domain domain"}, "not_volume", "vector"),
        ({"type": "block"}, "bad_header", "block"),
        ({"space_directions": "(.6,0,0) (0,.7,0)"}, "bad_header", "3 vector"),
        ({"space_directions": "(.6,0,0) (0,.7,0) (0,0,nan)"}, "bad_header", "nan"),
        ({"space_directions": "(.6,0,0) (0,.7,0) (0,.5,3)"}, "shear", "degrees"),
        ({"space_directions": None}, "bad_header", "space directions"),
        ({"space_directions": None, "spacings": "-.6 .7 3"}, "bad_header", "3 positive numbers"),
        ({"space_origin": "(0,0)"}, "bad_header", "space origin"),
        ({"space_units": '"um" "um" "um"'}, "bad_geometry", "um"),
        ({"line_skip": 3}, "bad_header", "line skip"),
    ],
)
def test_headers_of_nrrd(tmp_path, values, code, told):
    (tmp_path / "a.nrrd").write_bytes(nrrd(**values))
    found, text = refusal(tmp_path / "a.nrrd")
    assert found == code and told in text


@pytest.mark.parametrize(
    ("values", "code", "told"),
    [
        ({"scl_slope": np.nan}, "rescale", "scl_slope is nan"),
        ({"scl_slope": np.inf}, "rescale", "scl_slope is inf"),
        ({"scl_slope": -1}, "rescale", "scl_slope is -1"),
        ({"scl_slope": 1e30}, "rescale", "scl_slope is 1e+30"),
        ({"scl_inter": np.nan}, "rescale", "scl_inter is nan"),
        ({"scl_inter": np.inf}, "rescale", "scl_inter is inf"),
        ({"scl_inter": -1e30}, "rescale", "scl_inter is -1e+30"),
        ({"scl_slope": 0, "scl_inter": 5}, "rescale", "scl_slope is 0"),
        ({"srow": (0.6, 0, 0, 0, 0.5, 0.7, 0, 0, 0, 0, 3, 0)}, "shear", "degrees"),
        ({"srow": (0.488, 0, 0, -20, 0, 0.488, 0, -25, 0, 0, 3, 100)}, "bad_geometry", "0.488"),
        ({"srow": (0.6, 0, 0, 20, 0, 0.7, 0, -25, 0, 0, 3, 100)}, "bad_geometry", "qform"),
        ({"srow": (0.6, 0, 0, np.inf, 0, 0.7, 0, -25, 0, 0, 3, 100)}, "bad_geometry", "inf"),
        ({"srow": (0.6, 0, 0, -20, 0, 0, 0, -25, 0, 0, 3, 100)}, "bad_geometry", "0.0"),
        ({"srow": (0.6, 0, 0, 1e30, 0, 0.7, 0, -25, 0, 0, 3, 100)}, "bad_geometry", "1e+30"),
        ({"srow": (0.6, 0, 0, -20, 0, 0.7, 0, -25, 0, 0, 1e30, 100)}, "bad_geometry", "1e+30"),
        ({"srow": (0,) * 12}, "bad_geometry", "0.0"),
        ({"quatern": (0, np.nan, 0, 0, 0, 0)}, "bad_geometry", "qform"),
        ({"pixdim": (1, 0.6, 0.7, 0, 1, 1, 1, 1)}, "bad_header", "0.0"),
        ({"pixdim": (1, 0.6, 0.7, np.inf, 1, 1, 1, 1)}, "bad_header", "inf"),
        ({"units": 1}, "bad_geometry", "metres"),
        ({"units": 3}, "bad_geometry", "microns"),
        ({"vox_offset": 0}, "bad_header", "vox_offset is 0.0"),
        ({"vox_offset": 348}, "bad_header", "vox_offset is 348.0"),
        ({"vox_offset": np.nan}, "bad_header", "vox_offset is nan"),
        ({"vox_offset": 400}, "truncated", "of 73728 bytes"),
        ({"datatype": 2, "bitpix": 8}, "bad_header", "36864"),
        ({"datatype": 16, "bitpix": 32}, "truncated", "147456"),
        ({"datatype": 8}, "bad_header", "(8, 16)"),
        ({"datatype": 128, "bitpix": 24}, "not_volume", "3 value(s)"),
        ({"magic": b"ni1\0"}, "bad_header", "ni1"),
        ({"magic": b"\0\0\0\0"}, "bad_header", "magic"),
        ({"dim": (3, 32000, 32000, 32000, 1, 1, 1, 1)}, "too_large", "32000"),
        ({"dim": (3, -64, 72, 8, 1, 1, 1, 1)}, "bad_header", "-64"),
        ({"dim": (9, 64, 72, 8, 1, 1, 1, 1)}, "bad_header", "dim[0] is 9"),
        ({"dim": (4, 64, 72, 4, 2, 1, 1, 1)}, "not_volume", "64 x 72 x 4 x 2"),
        ({"extra": bytes(99)}, "bad_header", "73827"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_headers_of_nifti(tmp_path, values, code, told, suffix):
    content = nifti(**values)
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found, text = refusal(tmp_path / f"a{suffix}")
    assert found == code and (told in text or suffix == ".nii.gz")


def test_nifti_of_the_other_byte_order_and_with_scaling(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti(thorax() + np.int16(1024), ">", scl_slope=1, scl_inter=-1024))
    np.testing.assert_array_equal(scan.read(tmp_path / "a.nii").hu, thorax())
    (tmp_path / "a.nii").write_bytes(nifti(thorax().byteswap()))
    code, text = refusal(tmp_path / "a.nii")
    assert code == "corrupt" and "two bytes" in text


@pytest.mark.parametrize("order", "<>")
def test_nifti_2_is_read(tmp_path, order):
    head = bytearray(544)
    fields = [(0, "i", 540), (4, "8s", b"n+2\0\r\n\x1a\n"), (12, "2h", 4, 16), (16, "8q", 3, *thorax().shape[::-1], 1, 1, 1, 1)]
    fields += [(104, "4d", 1, *SPACING_MM[::-1]), (168, "q", 544), (176, "d", 1), (348, "i", 1), (500, "i", 2)]
    fields += [(400, "12d", SPACING_MM[2], 0, 0, -20, 0, SPACING_MM[1], 0, -25, 0, 0, SPACING_MM[0], 100)]
    for at, form, *values in fields:
        struct.pack_into(order + form, head, at, *values)
    (tmp_path / "a.nii").write_bytes(head + thorax().astype(order + "i2").tobytes())
    image = scan.read(tmp_path / "a.nii")
    np.testing.assert_array_equal(image.hu, thorax())
    np.testing.assert_allclose(image.affine, AFFINE * [[-1], [-1], [1], [1]], atol=1e-5)


def test_nifti_sform_that_agrees_is_read(tmp_path):
    """Rounding of float32, and a third decimal, are no contradiction."""
    srow = (0.60001, 0, 0, -20.001, 0, 0.7, 0, -25, 0, 0, 3.0002, 100)
    (tmp_path / "a.nii").write_bytes(nifti(srow=srow))
    np.testing.assert_array_equal(scan.read(tmp_path / "a.nii").hu, thorax())


@pytest.mark.parametrize("damage", ["checksum", "length", "bytes", "tail"])
def test_damaged_gzip(tmp_path, damage):
    content = bytearray(gzip.compress(nifti()))
    if damage == "tail":
        content += b"something else"
    else:
        content[{"checksum": -6, "length": -2, "bytes": len(content) // 2}[damage]] ^= 0x55
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert refusal(tmp_path / "a.nii.gz")[0] == "corrupt"
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti()) + bytes(512))
    np.testing.assert_array_equal(scan.read(tmp_path / "a.nii.gz").hu, thorax())


def test_damaged_zlib(tmp_path):
    packed = bytearray(zlib.compress(thorax().tobytes()))
    (tmp_path / "a.mha").write_bytes(meta(bytes(packed), CompressedData=True, CompressedDataSize=len(packed)))
    np.testing.assert_array_equal(scan.read(tmp_path / "a.mha").hu, thorax())
    packed[-1] ^= 1
    (tmp_path / "a.mha").write_bytes(meta(bytes(packed), CompressedData=True, CompressedDataSize=len(packed)))
    assert refusal(tmp_path / "a.mha")[0] == "corrupt"


BOMBS = """
import re, sys
from cacjax.files import scan
for path in sys.argv[1:]:
    (source,) = scan.find([path])
    try:
        scan.read(source)
        print("read", path)
    except scan.ScanError as error:
        print(error.code)
print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)  # not ru_maxrss, which a fork inherits
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_what_unpacks_to_more_than_memory(tmp_path):
    """Headers of 10^15 voxels and zeros without end, in a process of its own: refused within 1 GB."""
    zeros = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = b"".join([zeros.compress(nifti()), *(zeros.compress(bytes(1 << 24)) for _ in range(96)), zeros.flush()])
    (tmp_path / "a.nii.gz").write_bytes(packed)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nifti(dim=(3, 32767, 32767, 32767, 1, 1, 1, 1))))
    (tmp_path / "c.mha").write_bytes(meta(DimSize="99999 99999 99999"))
    (tmp_path / "d.mha").write_bytes(meta(zlib.compress(bytes(9999)), DimSize="1024 1024 1024", CompressedData=True))
    (tmp_path / "e.nrrd").write_bytes(nrrd(gzip.compress(bytes(9999)), sizes="99999 99999 99999", encoding="gzip"))
    codes = ["bad_header", "too_large", "too_large", "truncated", "too_large"]
    command = [sys.executable, "-c", BOMBS, *sorted(map(str, tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    *found, peak_mib = done.stdout.split()
    assert found == codes, done.stderr
    assert int(peak_mib) < 1000


# ---- values


def display(low, high):
    return lambda hu: np.clip((hu - low) / (high - low) * 255, 0, 255).round()


WRONG = {
    "1024 too much": lambda hu: hu + 1024,
    "1024 too little": lambda hu: hu - 1024,
    "times 10": lambda hu: hu * 10,
    "a tenth": lambda hu: hu / 10,
    "slope 10 of stored values": lambda hu: (hu + 1024) * 10 - 1024,
    "a narrow window": display(-160, 240),
    "a wide window": display(-1024, 1000),
    "a mask": lambda hu: (hu > 130) * 255.0,
    "huge": lambda hu: hu * 1e30,
    "negated": lambda hu: -hu,
    "padded and shifted": lambda hu: np.where(hu < -950, -2000, hu) + 1024,
}


def parts(hu):
    """A scan, and the heart cut out of it."""
    return {"whole": hu, "heart": hu[:, 12:60, 10:54].repeat(3, 0)}


@pytest.mark.parametrize("part", ["whole", "heart"])
@pytest.mark.parametrize("kind", WRONG)
def test_values_that_are_no_hounsfield_units(tmp_path, kind, part):
    hu = parts(thorax())[part].astype(np.float64)
    scan.write_image(WRONG[kind](hu), AFFINE, tmp_path / "a.nii.gz", np.float32)
    code, text = refusal(tmp_path / "a.nii.gz")
    assert code == "not_hounsfield" and "% of" in text and "values from" in text


def test_one_voxel_that_no_ct_stores(tmp_path):
    hu = thorax().astype(np.float32)
    hu[3, 4, 5] = 1e30
    scan.write_image(hu, AFFINE, tmp_path / "a.nrrd", np.float32)
    code, text = refusal(tmp_path / "a.nrrd")
    assert code == "not_hounsfield" and "1e+30" in text


@pytest.mark.parametrize("part", ["whole", "heart"])
@pytest.mark.parametrize("blood", [40, 300, 600, 750])
def test_hounsfield_units_pass(part, blood):
    hu = parts(thorax())[part].copy()
    hu[hu > 200] += blood - 300
    assert hounsfield.doubt(hu.reshape(-1).astype(np.float32)) == ""
    padded = np.where(hu < -950, -3024, hu).astype(np.float32)
    hounsfield.check(padded, "a")


def test_a_head_in_a_wide_field_passes():
    """Nearly all is air; what is not is soft tissue."""
    small = np.pad(thorax(), ((0, 0), (100, 100), (120, 120)), constant_values=-1000)
    soft = ((small >= -200) & (small <= 200)).mean()
    assert 0.02 < soft < 0.04
    assert hounsfield.doubt(small.reshape(-1).astype(np.float32)) == ""
    assert hounsfield.doubt(small.reshape(-1).astype(np.float32) - 1024)


def test_unsigned_values_with_the_offset_left_in(series):
    edit(series, RescaleIntercept="0")
    assert refusal(series)[0] == "not_hounsfield"


def test_drawings_of_few_voxels_are_not_judged():
    """The same nonsense in a scan of that many voxels is refused."""
    few = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    assert hounsfield.check(few, "a") is None
    with pytest.raises(scan.ScanError) as error:
        hounsfield.check(np.tile(few, (8, 8, 8)), "a")
    assert error.value.code == "not_hounsfield"


def test_reasons_are_known():
    """Every code that this room refuses with is in the list."""
    room = pathlib.Path(scan.__file__).parent
    text = "".join(path.read_text() for path in room.glob("*.py"))
    codes = {part.split('"')[1] for part in text.split("refuse(")[1:] if part.startswith('"')}
    assert codes and codes <= scan.REASONS.keys()
    assert {"rescale", "corrupt", "too_large", "bad_geometry", "not_hounsfield"} <= codes
