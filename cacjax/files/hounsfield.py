"""Whether the values of a scan are Hounsfield units: air, lung and soft tissue lie where they must, and little lies beyond bone."""

import numpy as np

from cacjax.files.geometry import refuse

# CT holds air and tissue, 1000 HU apart. Images scaled to 0..1 and label maps span less than this.
LEAST_SPAN_HU = 10.0
# What 16 bits hold with a slope of 1 or 2; single voxels beyond, as of an infinity that was written as a number, are no HU either.
FARTHEST_HU = 1 << 16
# Fewer voxels than these may be a drawing: too few to say what they show.
LEAST_VOXELS = 1 << 15
SAMPLE = 1 << 18
# The smallest value is padding (-2000, -3024) or clipped air where this many voxels have it, and tells little then.
PADDING, AIR_HU = 0.005, (-1100, -900)
LUNG_HU, VOID_HU, BRIGHT_HU, DENSE_HU, METAL_HU, SOFT_HU = -300, -1300, 500, 800, 3100, (-200, 200)
# Shares of voxels. The least and most that scans, phantoms and hearts cut out of both have: lung and air 6 %, soft tissue 27 % of all (a
# head in a field of 500 mm 3.7 %) and 54 % of what is not air, above 800 HU 0.7 %, which a scan 1024 too little has for soft tissue. Blood
# may be bright at 70 kV, but never five times as much as there is lung and air.
LEAST_LUNG, MOST_VOID, MOST_BRIGHT, MOST_DENSE, MOST_METAL, LEAST_SOFT, LEAST_SOFT_OF_BODY = 1e-4, 0.01, 0.05, 0.03, 0.01, 0.02, 0.1
BRIGHT_TO_AIR = 5


def check(hu, path):
    """Raises ScanError: `not_hu` for values that no CT has, not finite or spanning under 10; `not_hounsfield` for those of another scale,
    with the shares of voxels that tell it; `corrupt` where exchanging the two bytes of each value makes it right. hu: [z, y, x]."""
    low, high = float(hu.min()), float(hu.max())
    if not np.isfinite([low, high]).all():
        count = int(hu.size - np.isfinite(hu).sum())
        advice = "Fill them with -1000 HU (air) if they lie outside the field of view."
        raise refuse("not_hu", path, f"{count} voxels are NaN or infinite", "finite Hounsfield units", advice)
    if high - low < LEAST_SPAN_HU:
        expected = f"Hounsfield units that span at least {LEAST_SPAN_HU:g}"
        advice = "Give the CT itself, not a mask or an image scaled to 0..1."
        raise refuse("not_hu", path, f"all values lie within {low:g} and {high:g}", expected, advice)
    sample = hu.reshape(-1)[:: hu.size // SAMPLE | 1]  # an odd step meets every column of an even matrix
    found = doubt(sample) if hu.size >= LEAST_VOXELS else ""
    if max(-low, high) > FARTHEST_HU:
        found = found or f"values from {low:g} to {high:g}, further than a CT stores"
    if not found:
        return
    if _whole(sample, low, high) and not doubt(sample.astype(np.int16).byteswap()):
        advice = "Write the file again with the byte order that its voxels have."
        raise refuse("corrupt", path, f"{found}; with the two bytes of each exchanged the values fit", "Hounsfield units", advice)
    expected = "Hounsfield units: air -1000, fat -100, water 0, muscle 50, bone to 3000"
    raise refuse("not_hounsfield", path, found, expected, "Write the file again with the rescale slope and intercept applied once.")


def doubt(values):
    """What in these values, a sample of a scan's voxels, no CT has, in words with numbers; "" for Hounsfield units.

    Every scan of a heart, of the whole chest or of the heart alone, shows lung or air; soft tissue, not enhanced, is a good part of all
    that is not air; what is denser than enhanced blood, or emptier than air, is rare.
    """
    low, size = values.min(), values.size
    padding = values == low
    seen = values[~padding] if padding.mean() > PADDING else values
    air = (seen < LUNG_HU).sum() / size
    lung = (values < LUNG_HU).mean() if AIR_HU[0] <= low <= AIR_HU[1] else air
    void, bright, dense, metal = (seen < VOID_HU).sum() / size, *((values > hu).mean() for hu in (BRIGHT_HU, DENSE_HU, METAL_HU))
    soft = ((values >= SOFT_HU[0]) & (values <= SOFT_HU[1])).mean()
    body = max((values >= LUNG_HU).mean(), 1 / size)
    told = f"values from {low:g} to {values.max():g}, "
    beside = f"and {air:.2%} below {LUNG_HU} HU, where lung and air are"
    if void > MOST_VOID:
        return told + f"{void:.1%} of them below {VOID_HU} HU, emptier than air, beside the padding"
    if metal > MOST_METAL:
        return told + f"{metal:.1%} of them above {METAL_HU} HU, where only metal is"
    if dense > MOST_DENSE and dense > air:
        return told + f"{dense:.1%} of them above {DENSE_HU} HU, where bone is, {beside}"
    if bright > MOST_BRIGHT and bright > BRIGHT_TO_AIR * air:
        return told + f"{bright:.1%} of them above {BRIGHT_HU} HU, where bone and enhanced blood are, {beside}"
    if lung < LEAST_LUNG:
        return told + f"{lung:.2%} of them below {LUNG_HU} HU, where lung and air are"
    if soft < LEAST_SOFT or soft / body < LEAST_SOFT_OF_BODY:
        return (
            told
            + f"{soft:.1%} of them, {soft / body:.1%} of what is not air, within {SOFT_HU[0]} and {SOFT_HU[1]} HU, where soft tissue is"
        )
    return ""


def _whole(sample, low, high):
    return low >= -32768 and high <= 32767 and bool((sample == np.round(sample)).all())
