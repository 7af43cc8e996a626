"""The reference standard of labels, drawn by hand."""

import numpy as np
import pytest

from cacjax.data.reference import Settled
from cacjax.kernels.reference import settle


def line(*values):
    return np.array([[values]])


@pytest.mark.parametrize(
    ("label", "hu", "least_mm3", "expected"),
    [
        ((1, 2, 2, 0, 3, 3), (200,) * 6, 1.5, (2, 2, 2, 0, 3, 3)),  # by the majority
        ((3, 1, 0, 7, 7, 2), (200,) * 6, 1.5, (1, 1, 0, 7, 7, 7)),  # ties to the smallest class; an unknown artery is one, too
        ((1, 1, 1, 1, 0, 2), (200, 200, 130, 131, 0, 200), 1.5, (1, 1, 0, 0, 0, 0)),  # 130 HU are not above, and part two lesions
        ((1, 1, 0, 2, 0, 0), (200,) * 6, 2.0, (0,) * 6),  # of the least volume is not larger
        ((4, 4, 4, 5, 5, 6), (200,) * 6, 0.0, (0,) * 6),  # not coronary
        ((0,) * 6, (200,) * 6, 1.5, (0,) * 6),
    ],
)
def test_settled_by_hand(label, hu, least_mm3, expected):
    """Voxels of 1 mm³; and of half of that, twice as many are needed."""
    assert settle(line(*label), line(*hu), 1.0, least_mm3).tolist() == line(*expected).tolist()
    twice = settle(line(*np.repeat(label, 2)), line(*np.repeat(hu, 2)), 0.5, least_mm3)
    assert twice.tolist() == line(*np.repeat(expected, 2)).tolist() and twice.dtype == np.uint8


def test_corners_and_edges_do_not_join():
    label = np.zeros((2, 2, 3), int)
    label[0, 0, :2] = label[1, 1, 1:] = 1
    label[1, 1, 2] = 2
    settled = settle(label, np.full(label.shape, 300), 1.0, 1.5)
    assert settled[0, 0].tolist() == [1, 1, 0] and settled[1, 1].tolist() == [0, 1, 1], "each by its own majority"


def test_records_are_settled_by_their_own_voxel():
    record = {"label": line(1, 0, 2, 2), "hu": line(300, 300, 300, 300), "id": "a"}
    thin, thick = (record | {"spacing_mm": np.array([depth, 1.0, 1.0])} for depth in (1.0, 2.0))
    settled = Settled([thin, thick], 1.5)
    assert [r["label"].ravel().tolist() for r in settled] == [[0, 0, 2, 2], [1, 0, 2, 2]] and settled[0]["id"] == "a"
