"""Newton solvers that lay curves on the heart: into grooves between chambers, along a wall, and clear of everything.

Column order of the fields: lv, rv, ra, la, aorta, pulmonary trunk, la without its appendage. Each solver is one compiled
program of fixed shape.
"""

import functools

import jax
import jax.numpy as jnp

from cacjax.phantom.heart import atrial_body, heart_sdfs
from cacjax.phantom.surfaces import chain

LV, RV, RA, LA, AORTA, TRUNK, LA_BODY = range(7)
FIELDS = 7
POINTS = 400
CLEARANCE_MM = 2.6


def _distances(points, a):
    """Distances [n, 7] and their gradients [n, 7, 3] at points [n, 3].

    Forward differences over 0.05 mm: a quarter of the program that exact derivatives compile to, and good to 1e-3.
    """
    shifts = jnp.concatenate([jnp.zeros((1, 3)), 0.05 * jnp.eye(3)])
    p = tuple(jnp.moveaxis(points[None] + shifts[:, None], -1, 0))
    chambers = heart_sdfs(p, a)
    vessels = [chain(p, a["ao"][:5], a["ao_r"][:5]), chain(p, a["pa"], a["pa_r"])]
    surfaces = [*(chambers[name] for name in ("lv", "rv", "ra", "la")), *vessels, atrial_body(p, a)]
    d = jnp.stack([s[0] for s in surfaces], -1)
    return d[0], jnp.moveaxis(d[1:] - d[0], 0, -1) / 0.05


def _rows(values, index):
    return jnp.take_along_axis(values, index.reshape(-1, 1, *([1] * (values.ndim - 2))), axis=1)[:, 0]


def _to_groove(points, d, g, first, second):
    """One minimum-norm Newton step, at most 4 mm, towards {first = second = clearance}."""
    g1, g2 = _rows(g, first), _rows(g, second)
    r1, r2 = _rows(d, first) - CLEARANCE_MM, _rows(d, second) - CLEARANCE_MM
    g11, g22, g12 = jnp.sum(g1 * g1, 1), jnp.sum(g2 * g2, 1), jnp.sum(g1 * g2, 1)
    determinant = g11 * g22 - g12 * g12 + 3e-3 * (g11 + g22)  # damped: the walls may be parallel
    w1, w2 = (g22 * r1 - g12 * r2) / determinant, (g11 * r2 - g12 * r1) / determinant
    step = w1[:, None] * g1 + w2[:, None] * g2
    length = jnp.linalg.norm(step, axis=1, keepdims=True)
    return points - step * jnp.minimum(1.0, 4.0 / (length + 1e-9))


def _to_wall(points, d, g, wall, clearance, apart):
    """One Newton step onto {wall = clearance}, away from the surfaces where `apart` [n, 7] is 1."""
    near = _rows(d, wall) - clearance
    towards = _rows(g, wall)
    points = points - (near / (jnp.sum(towards**2, 1) + 1e-6))[:, None] * towards
    push = jnp.minimum(d - clearance, 0.0) * apart / (jnp.sum(g**2, 2) + 1e-6)
    return points - 0.7 * jnp.sum(push[..., None] * g, 1)


@jax.jit
def settle_grooves(points, first, second, on_wall, a):
    """Points [n, 3] moved into the groove between surfaces first, second [n]; where `on_wall` they end exactly above `first`."""
    nobody = jnp.zeros((points.shape[0], FIELDS))

    def refine(i, p):
        d, g = _distances(p, a)
        laid = jnp.where(on_wall[:, None], _to_wall(p, d, g, first, CLEARANCE_MM, nobody), p)
        return jnp.where(i < 25, _to_groove(p, d, g, first, second), laid)

    return jax.lax.fori_loop(0, 31, refine, points)


@functools.partial(jax.jit, static_argnames="step_mm")
def march(starts, directions, towards, jitter, wall, apart, a, *, step_mm=5.0):
    """Branches [steps, n, 3] that walk on surface `wall` [n] from starts [n, 3] in steps of 5 mm.

    directions: first headings; towards: headings they keep returning to; jitter [steps, n, 3]; apart [n, 7]: surfaces to avoid.
    """

    def walk(carry, noise):
        position, heading = carry
        goal = position + step_mm * heading
        goal = jax.lax.fori_loop(0, 6, lambda _, p: _to_wall(p, *_distances(p, a), wall, CLEARANCE_MM - 0.6, apart), goal)
        moved = goal - position
        moved = moved / (jnp.linalg.norm(moved, axis=1, keepdims=True) + 1e-9)
        heading = 0.75 * moved + 0.25 * towards + 0.12 * noise
        return (goal, heading / jnp.linalg.norm(heading, axis=1, keepdims=True)), goal

    return jax.lax.scan(walk, (starts, directions), jitter)[1]


@jax.jit
def keep_clear(curves, radius, fixed, in_aorta, last, a):
    """Curves [m, 400, 3] pushed out of the chambers and great vessels until 0.7 mm around the radius [m] is free.

    The first `fixed` [m] points stay, the first `in_aorta` [m] may touch the aorta; points after `last` [m] repeat the last one.
    """
    index = jnp.arange(POINTS)
    held = index[None] <= fixed[:, None]
    tail = jnp.minimum(index[None], last[:, None])
    leaving = (index[None] < in_aorta[:, None])[..., None] & (jnp.arange(FIELDS) == AORTA)
    ignored = leaving | (jnp.arange(FIELDS) == LA_BODY)

    def relax(_, c):
        d, g = _distances(c.reshape(-1, 3), a)
        d, g = d.reshape(*c.shape[:2], FIELDS), g.reshape(*c.shape[:2], FIELDS, 3)
        push = jnp.where(ignored, 0.0, jnp.minimum(d - radius[:, None, None] - 0.7, 0.0))
        push = jnp.clip(push / (jnp.sum(g * g, -1) + 1e-6), -3.0, 0.0)
        moved = c - 0.8 * jnp.sum(push[..., None] * g, -2)
        smooth = _smooth(jnp.take_along_axis(moved, tail[..., None], 1))
        return jnp.where(held[..., None], c, smooth)

    return jax.lax.fori_loop(0, 14, relax, curves)


def _smooth(curves):
    """Five-tap smoothing along curves [m, n, 3]; the ends are repeated."""
    padded = jnp.pad(curves, ((0, 0), (2, 2), (0, 0)), mode="edge")
    n = curves.shape[1]
    return sum(w * padded[:, k : k + n] for k, w in enumerate((1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9)))
