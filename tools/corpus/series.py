"""Folders of more than one series, of another kind of image, or of slices that do not belong together."""

import shutil

import pydicom
from corpus.clean import new_uid, put, slices
from corpus.kinds import family, kind
from pydicom import uid


def other(place, folder, name, *, hu=None, change=None, seed=2):
    """Another series of three slices in the same folder, under other names."""
    beside = place.dicom(name, hu=place.hu[:3] if hu is None else hu, change=change, seed=seed)
    for path in slices(beside):
        path.rename(folder / f"{name}_{path.name}")
    beside.rmdir()
    return folder


@family(
    "dicom_beside",
    {
        "localizer": put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "mr": put(Modality="MR", SOPClassUID=uid.MRImageStorage),
        "screenshot": put(SOPClassUID=uid.SecondaryCaptureImageStorage, Modality="OT"),
        "pet": put(Modality="PT", SOPClassUID=uid.PositronEmissionTomographyImageStorage),
        "report": put(Modality="SR", SOPClassUID=uid.BasicTextSRStorage, Rows=None, Columns=None, PixelData=None),
        "segmentation": put(Modality="SEG", SOPClassUID=uid.SegmentationStorage),
    },
    "same",
)
def dicom_beside(place, change):
    """What is no CT image lies beside the series."""

    def both(data, index):
        change(data, index)
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID

    return other(place, place.dicom(), "other", change=both)


@kind("same")
def files_beside(place):
    """Files that are no DICOM lie beside the series."""
    folder = place.dicom()
    for name, content in (
        ("report.txt", b"no voxels"),
        (".DS_Store", b"\0" * 200),
        ("._IM0001.dcm", b"\0\5\x16\7"),
        ("thumb.jpg", b"\xff\xd8"),
    ):
        (folder / name).write_bytes(content)
    return folder


@kind("refused", "not_dicom", "truncated")
def strangers_beside(place):
    """A file that claims to be DICOM and is none."""
    folder = place.dicom()
    (folder / "x.dcm").write_bytes(place.pick(b"", b"\0" * 300, b"version https://git-lfs.github.com/spec/v1", b"<html>" * 100))
    return folder


@kind("refused", "several_series")
def two_series(place):
    return other(place, place.dicom(), "other")


@kind("refused", "not_ct", "truncated")
def no_ct(place):
    """A series of another kind, whole."""
    return place.dicom(change=place.pick(put(Modality="MR"), put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), put(SamplesPerPixel=3)))


@kind("refused", "missing_slice")
def slice_missing(place):
    folder = place.dicom()
    slices(folder)[place.one()[0]].unlink()
    return folder


@kind("refused", "duplicate_slice")
def slice_twice(place):
    """The same file under two names, or another image at the same place."""
    folder, at = place.dicom(), place.one()[0]
    twin = folder / "twin.dcm"
    shutil.copy(slices(folder)[at], twin)
    if place.pick(True, False):
        data = pydicom.dcmread(twin)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = new_uid(place, at)
        data.PixelData = place.hu[at - 1].astype("<i2").tobytes()
        data.save_as(twin)
    return folder


@family(
    "dicom_mixed",
    {
        "spacing": lambda data: setattr(data, "PixelSpacing", [0.7, 0.7]),
        "axes": lambda data: setattr(data, "ImageOrientationPatient", [0.8, 0.6, 0, -0.6, 0.8, 0]),
        "aside": lambda data: setattr(
            data, "ImagePositionPatient", [float(data.ImagePositionPatient[0]) + 5, *data.ImagePositionPatient[1:]]
        ),
        "along": lambda data: setattr(
            data, "ImagePositionPatient", [*data.ImagePositionPatient[:2], float(data.ImagePositionPatient[2]) + 1]
        ),
        "units": lambda data: setattr(data, "RescaleType", "MGML"),
    },
    "refused",
)
def dicom_mixed(place, change):
    """One slice differs from the others."""
    return place.dicom(change=lambda data, index: change(data), only=place.one())


@kind("refused", "gantry_tilt", "shear")
def gantry(place):
    def change(data, index):
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [float(x), float(y) + 1.5 * index, float(z)]

    return place.dicom(change=change)


@kind("refused", "mixed_geometry", "truncated")
def matrix_mixed(place):
    """One slice has another matrix than the others."""

    def change(data, index):
        data.Rows, data.PixelData = data.Rows - 2, data.PixelData[: -4 * data.Columns]

    return place.dicom(change=change, only=place.one())


@kind("either")
def slices_of_two(place):
    """Slices of another patient under the same series."""
    return place.dicom(change=put(PatientID="OTHER", StudyInstanceUID=new_uid(place)), only=place.one())
