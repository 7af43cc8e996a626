"""DICOM folders: encodings, headers that say what cannot be, mixed series."""

import numpy as np
import pydicom
from corpus.clean import claim, plant, put, slices
from corpus.kinds import family, kind
from pydicom import uid

SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "big_endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg": uid.JPEGBaseline8Bit,
    "jpeg_lossless": uid.JPEGLosslessSV1,
    "jpeg_ls": uid.JPEGLSLossless,
    "jpeg_2000": uid.JPEG2000Lossless,
}


# ---- encodings


@kind("same")
def dicom_names(place):
    """Files in another order, without a suffix or with one of their own."""
    folder = place.dicom()
    files = slices(folder)
    for path, number in zip(files, place.rng.permutation(len(files))):
        path.rename(folder / (f"{number:08X}" + place.pick("", ".ima", ".dcm", ".0001")))
    return folder


@family("dicom_in", {name: SYNTAXES[name] for name in ("implicit", "big_endian", "deflated", "rle")}, "same")
def dicom_in(place, syntax):
    """Another transfer syntax, truly."""
    folder = place.dicom()
    for path in slices(folder):
        data = pydicom.dcmread(path)
        if syntax == uid.RLELossless:
            data.compress(syntax, generate_instance_uid=False)
        else:
            data.file_meta.TransferSyntaxUID = syntax
            data["PixelData"].VR = "OW"
            if syntax == uid.ExplicitVRBigEndian:
                data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
        pydicom.dcmwrite(path, data, enforce_file_format=True)
    return folder


@kind("same")
def dicom_rescaled(place):
    """A slope and an intercept of each slice's own, which give the same Hounsfield units."""

    def change(data, index):
        slope, intercept = place.pick((0.5, -1024), (1, -2000 + index), (0.25, 0), (1, 0))
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = np.round((place.hu[index] - intercept) / slope).astype("<i2").tobytes()

    return place.dicom(change=change)


@kind("same")
def dicom_unsigned(place):
    """Stored without a sign, 12 of 16 bits."""

    def change(data, index):
        data.PixelRepresentation, data.BitsStored, data.HighBit = 0, 12, 11
        data.PixelData = np.clip(place.hu[index] + 1024, 0, 4095).astype("<u2").tobytes()

    return place.dicom(change=change)


@kind("same")
def dicom_decimals(place):
    """Positions as a scanner rounds them, to 0.0001 mm about an increment of 3.0002 or 3 mm."""
    affine = place.affine.copy()
    affine[:3, 0] *= place.pick(1, 3.0002 / 3)

    def change(data, index):
        data.ImagePositionPatient = [f"{value:.4f}" for value in affine[:3, 3] + index * affine[:3, 0]]
        data.ImageOrientationPatient = [f"{float(value):.6f}" for value in data.ImageOrientationPatient]

    return place.dicom(affine=affine, change=change)


@kind("flagged")
def dicom_lossy(place):
    return place.dicom(change=put(LossyImageCompression="01", LossyImageCompressionRatio=place.pick(8, 12.5)))


# ---- headers that say what cannot be

RESCALES = {"0": "0", "minus": "-1", "huge": "1e30", "nan": "NaN", "infinite": "inf", "word": "one", "tiny": "1e-30"}

RESCALE_CODES = ("rescale", "bad_header", "not_hu", "not_hounsfield", "unreadable")


@family("dicom_slope", RESCALES, "refused", *RESCALE_CODES)
def dicom_slope(place, text):
    folder = place.dicom()
    plant(folder, "RescaleSlope", text, place.some())
    return folder


@family(
    "dicom_intercept",
    {"huge": "1e30", "nan": "NaN", "infinite": "-inf", "word": "x"},
    "refused",
    *RESCALE_CODES,
)
def dicom_intercept(place, text):
    folder = place.dicom()
    plant(folder, "RescaleIntercept", text, place.some())
    return folder


@kind("refused")
def dicom_without(place):
    """A tag absent that nothing can be read without."""
    tags = ("RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "PixelData")
    tag = place.pick(*tags)
    return place.dicom(change=put(**{tag: None}), only=place.some())


@family("dicom_bits", {"8": 8, "12": 12, "0": 0, "32": 32, "64": 64}, "refused", "bad_header", "truncated")
def dicom_bits(place, allocated):
    return place.dicom(change=put(BitsAllocated=allocated), only=place.some())


@kind("either")
def dicom_no_sign(place):
    """PixelRepresentation is absent."""
    return place.dicom(change=put(PixelRepresentation=None), only=place.some())


@kind("either")
def dicom_high_bit(place):
    return place.dicom(change=put(**place.pick({"HighBit": 11}, {"BitsStored": 17}, {"HighBit": 31}, {"BitsStored": 0})), only=place.some())


@family("dicom_frames", {"minus": -1, "many": 2**31 - 1, "12": 12}, "refused", "bad_header", "multiframe", "truncated")
def dicom_frames(place, frames):
    return place.dicom(change=put(NumberOfFrames=frames), only=place.some())


@family("dicom_photometric", {name.replace(" ", "_"): name for name in ("MONOCHROME1", "RGB", "PALETTE COLOR")}, "refused")
def dicom_photometric(place, name):
    return place.dicom(change=put(PhotometricInterpretation=name))


@family("dicom_claims", SYNTAXES, "refused", "bad_header", "unreadable", "truncated", "unsupported_transfer_syntax", "corrupt")
def dicom_claims(place, syntax):
    """The file names a transfer syntax that is not its own."""
    folder = place.dicom()
    claim(folder, syntax, place.some())
    return folder


@kind("refused")
def dicom_swapped(place):
    """Pixels in the other byte order."""
    return place.dicom(
        hu=place.hu, change=lambda data, index: setattr(data, "PixelData", np.frombuffer(data.PixelData, "<i2").byteswap().tobytes())
    )


@kind("refused")
def dicom_matrix(place):
    """More rows than there are pixels, or none."""
    return place.dicom(change=put(Rows=place.pick(0, len(place.hu[0]) + 1, 65535), Columns=place.pick(0, 65535)), only=place.some())


@family(
    "dicom_place",
    {
        "spacing_0": ("PixelSpacing", r"0\0"),
        "spacing_minus": ("PixelSpacing", r"-1\1"),
        "spacing_nan": ("PixelSpacing", r"NaN\NaN"),
        "spacing_huge": ("PixelSpacing", r"1e30\1e30"),
        "spacing_one": ("PixelSpacing", "0.7"),
        "position_nan": ("ImagePositionPatient", r"NaN\0\0"),
        "position_two": ("ImagePositionPatient", r"0\0"),
        "axes_0": ("ImageOrientationPatient", r"0\0\0\0\0\0"),
        "axes_short": ("ImageOrientationPatient", r"1\0\0"),
        "axes_same": ("ImageOrientationPatient", r"1\0\0\1\0\0"),
    },
    "refused",
)
def dicom_place(place, variant):
    folder = place.dicom()
    plant(folder, *variant, place.some())
    return folder


@kind("either")
def dicom_text(place):
    """Words where they mean little, in characters of any kind."""
    folder = place.dicom()
    tag = place.pick("PatientID", "SeriesDescription", "ConvolutionKernel", "Manufacturer", "KVP", "SliceThickness", "ContrastBolusAgent")
    text = place.pick("M\udcfcller", "\udcff\udcfe", "a" * 16, "<b>&amp;", "=SUM(A1)", "\n,;", "\0\0", "1e999", "-0").encode(
        "utf-8", "surrogateescape"
    )
    plant(folder, tag, text.decode("latin-1"), place.some())
    return folder
