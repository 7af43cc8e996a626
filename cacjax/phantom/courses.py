"""The four grooves of a heart in which its coronary arteries run: rough guesses, settled by Newton steps."""

import numpy as np

from cacjax.phantom import grooves
from cacjax.phantom.curves import across, unit
from cacjax.phantom.grooves import LA_BODY, LV, RA, RV

STATIONS = 16


def frame_of_heart(anatomy):
    """Long axis, direction to the right ventricle, mitral centre, apex, right ventricular centre; [3] each, mm."""
    long_axis, to_right, _, mitral, apex, right = np.asarray(anatomy["frame"], float)
    return long_axis, to_right, mitral, apex, right


def groove_courses(anatomy, heart):
    """Four runs of 16 points: anterior and inferior between the ventricles, left and right between atrium and ventricle."""
    guesses = [*_interventricular_guesses(anatomy), _left_guess(anatomy), _right_guess(anatomy)]
    first, second = np.repeat([LV, LV, LV, RV], STATIONS), np.repeat([RV, RV, LA_BODY, RA], STATIONS)
    on_wall = np.repeat([True, False, False, False], STATIONS)
    points = np.concatenate(guesses).astype(np.float32)
    settled = grooves.settle_grooves(points, first, second, on_wall, heart)
    return np.asarray(settled, float).reshape(4, STATIONS, 3)


def _upwards(long_axis):
    return across(np.array([0, -0.55, 0.83]), long_axis)


def _interventricular_guesses(anatomy):
    long_axis, to_right, mitral, apex, _ = frame_of_heart(anatomy)
    length, up = np.linalg.norm(apex - mitral), _upwards(long_axis)
    u = np.linspace(-2, length * 1.03, STATIONS)
    radius = 38 * np.sqrt(np.maximum(0.05, 1 - ((u - 0.46 * length) / (0.60 * length)) ** 2))[:, None]
    spine = mitral + u[:, None] * long_axis
    return [spine + radius * (0.55 * to_right + side * 0.83 * up) for side in (1, -1)]


def _left_guess(anatomy):
    """A circle of 36 mm around the mitral ring, from above the left main over the side wall to below."""
    long_axis, to_right, mitral, *_ = frame_of_heart(anatomy)
    up, side = _upwards(long_axis), unit(-to_right)
    start = unit(0.9 * up + 0.45 * side)
    turn = unit(np.cross(long_axis, start) * np.sign(np.cross(long_axis, up) @ side))
    angle = np.deg2rad(np.linspace(-20, 175, STATIONS))[:, None]
    return mitral + 2 * long_axis + 36 * (np.cos(angle) * start + np.sin(angle) * turn)


def _right_guess(anatomy):
    """A circle of 34 mm around the tricuspid ring, from the front to below."""
    right_atrium = np.asarray(anatomy["ra"][:3], float)
    axis = unit(frame_of_heart(anatomy)[4] - right_atrium)
    up = across(np.array([0, -0.2, 1.0]), axis)
    front = np.cross(axis, up)
    front = front * np.sign(front @ np.array([-0.5, -0.8, 0]))
    angle = np.deg2rad(np.linspace(15, 205, STATIONS))[:, None]
    return right_atrium + 20 * axis + 34 * (np.cos(angle) * up + np.sin(angle) * front)
