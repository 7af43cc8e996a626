"""Cases of whole scans: from Hounsfield units to a mask and to scores, against PyTorch's dense pass with scipy and numpy behind it.

The scan is a phantom CCTA of 200 x 512 x 512 voxels on the network's grid, with its heart and its scan threshold; weights are random, and
both sides classify alike. PyTorch's dense pass over 1,224 planes takes minutes: it is timed on a twentieth of them in each orientation and
scaled by operations. Given the same boxes, PyTorch computes the rectangles that ours computes, shape by shape (eager: compiling each shape
takes longer).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from race import Case, compiled
from scipy import ndimage
from uda_cases import finish, parameters, ready, systems

import cacjax.phantom
from cacjax.inference import candidates, rectangles
from cacjax.inference.planes import normalise
from cacjax.kernels import grids, rules, scores
from cacjax.models.dilated import doubling, margin, middle_pixels
from cacjax.phantom import observer
from cacjax.scoring import one_scan, program
from cacjax.task import Net, State, build
from cacjax.tasks import lessmann
from configs import uda as uda_config

SHAPE, QUICK, SEED = (200, 512, 512), (24, 96, 96), 900_011
TIMED = 20  # a dense call computes one in so many planes
MOST_MM3 = 500.0


def cases(options):
    """Generator of the cases; the later ones compare with what the first made."""
    if not any(options.only in work for work in ("whole-scan detection", "detect and score")):
        return
    both, config, shape = systems(options.device), get_config(), QUICK if options.quick else SHAPE
    spacing_mm = tuple(config.data.grid.spacing_mm)
    scan = cacjax.phantom.make_scan("ccta", SEED, shape=shape, spacing_mm=spacing_mm)
    task, state, model = build(config), weights(both[0]), lessmann.network(config)
    threshold_hu = scan.truth["threshold_hu"]
    case, plan = one_scan.make_case(task.detector, scan.hu.astype(np.float32), spacing_mm, scan.affine, scan.heart, threshold_hu)
    case = jax.device_put(case)
    hu, wanted = asked(config, case, plan)
    predict, took = compiled(task.predict, state, hu, wanted)
    label, chosen = np.asarray(predict(state, hu, wanted)[0]), np.asarray(wanted)
    size = "x".join(map(str, shape))
    print(f"  {chosen.sum()} of {np.prod(shape)} voxels to classify", flush=True)

    pairs = rectangles_of(model, chosen)
    boxes, flops = [box for _, box in pairs], operations(model, pairs, chosen)
    m = margin(model.dilations)
    padded = np.pad(np.asarray(normalise(hu)), m, constant_values=-1.0)
    own = padded[tuple(slice(0, n + 2 * m) for n in shape)]
    works = [finish(functools.partial(dense, system, subnets(system), own, m)) for system in both]
    ours = ready(predict, state, hu, wanted)
    part = share(model, shape)
    yield Case("whole-scan detection", f"CCTA {size}, against dense", ours, *works, predict, took, flops=flops, parts=part)

    works = [finish(functools.partial(same_boxes, system, padded, boxes, chosen)) for system in both]
    theirs = works[0]()
    differ = int((theirs != label[chosen]).sum())
    print(f"  {len(boxes)} rectangles; {differ} of {len(theirs)} classes differ from PyTorch's", flush=True)
    if differ > len(theirs) // 1000:
        raise SystemExit("the classes differ from PyTorch's, expected at most one in a thousand (ties)")
    yield Case("whole-scan detection", f"CCTA {size}, the same boxes", ours, *works, predict, took, flops=flops)

    rule, classes = rules.named("default"), task.detector.classes
    unit = rules.pixel_score(rule, spacing_mm)
    reading, kinds, _ = one_scan.read_by(one_scan.Weighing({"default": rule}, "default", None), shape, spacing_mm)
    how = program.How(plan.how, kinds, classes)
    given = task.detector.weights(state), case, jax.device_put(reading)
    whole, took = compiled(lambda *given: program.detect_and_score(task.detector.find, *given, how), *given)
    after = functools.partial(by_scipy, scan, grids.cut(label, shape), config)
    mask, agatston = after()
    finding, tables = whole(*given)
    if not np.array_equal(grids.cut(finding.label, shape), mask):
        raise SystemExit("the mask differs from scipy's")
    scored = scores.by_artery(scores.from_totals(jax.device_get(tables.totals[0]), spacing_mm, rule, unit), classes)
    print(f"  Agatston {agatston:.1f} by numpy, ours {scored.agatston[-1]:.1f}", flush=True)
    works = [finish(functools.partial(dense, system, subnets(system), own, m)) for system in both]
    run = ready(whole, *given)
    yield Case("detect and score", f"CCTA {size}, warm", run, *works, whole, took, flops=flops, parts=part, after=after)


def get_config():
    """False positives reduced as in the authors' code, only what can count classified."""
    config = uda_config.get_config()
    config.scoring.update({"fp_reduction": "authors_code", "classify": "mask"})
    return config


def weights(system) -> State:
    """Our state at the weights of a PyTorch system."""
    params = parameters(system)
    return State(jnp.int32(0), {"generator": Net(params["generator"]), "heads": Net(params["neck"])})


def asked(config, case, plan):
    """(hu, wanted) on the network's grid, of which a detector asks its network."""
    seen = []

    def note(state, hu, wanted):
        seen.append((hu, wanted))
        return jnp.zeros(hu.shape, jnp.uint8), jnp.zeros(hu.shape)

    candidates.detector(config, note).find(None, case, plan.how)
    return seen[0]


def subnets(system):
    """The system's three subnets, compiled where it is tuned."""
    return [torch.compile(net) if system.tuned else net for net in system.generator.subnets]


def look_at(system, net, plane):
    """Features [c, h, w] of a padded plane."""
    with torch.no_grad():
        return net(system.place(np.ascontiguousarray(plane)[None, None]))[0]


def timed(shape):
    """How many planes of each orientation one dense call computes."""
    return [-(-n // TIMED) for n in shape]


def dense(system, nets, padded, m):
    """Features of the first planes of each orientation, as a dense pass computes them all; m: margin around the volume."""
    for axis, (net, count) in enumerate(zip(nets, timed([n - 2 * m for n in padded.shape]))):
        for position in range(count):
            look_at(system, net, np.take(padded, m + position, axis))


def share(model, shape):
    """Operations of one dense call over those of the whole dense pass."""
    halo = 2 * margin(model.dilations)
    sides = [(shape[1], shape[2]), (shape[0], shape[2]), (shape[0], shape[1])]
    # Output pixels stand for operations, halo included: every layer shrinks both the same way.
    work = [(a + halo / 2) * (b + halo / 2) for a, b in sides]
    return sum(n * w for n, w in zip(timed(shape), work)) / sum(n * w for n, w in zip(shape, work))


def rectangles_of(model, wanted):
    """Pairs (form, (orientation, position, row, column, height, width)) of every rectangle that ours computes, turned ones turned back."""
    work, out = jax.device_get(rectangles.survey(model, rectangles.pack(wanted), wanted.shape, max(wanted.shape))), []
    every = [(form, kind) for form in rectangles.forms(model, max(wanted.shape)) for kind in range(rectangles.KINDS)]
    for (form, kind), start, stop in zip(every, work.bounds[:-1], work.bounds[1:], strict=True):
        for i in range(start, stop):
            place = work.row[i], work.column[i], form.height, form.width
            place = place if kind < 3 else (*place[1::-1], *place[:1:-1])
            out.append((form, (kind % 3, int(work.position[i]), *map(int, place))))
    return out


def operations(model, pairs, wanted) -> float:
    """FLOPs of `rectangles_of`, as direct convolutions (a loop's are not counted by the compiler)."""
    start, halos = doubling(model.dilations), 2 * (margin(model.dilations) - np.cumsum(model.dilations))
    inputs = np.array([1] + [model.width] * (len(halos) - 1))
    late = 9 * model.width * middle_pixels(model.dilations) + model.width
    total = 0
    for form, (orientation, position, *_) in pairs:
        layers = 9 * inputs * (form.height + halos) * (form.width + halos)
        voxels = np.take(wanted, position, orientation).sum()
        total += layers[:start].sum() + voxels * late if form.most else layers.sum() + model.width * form.height * form.width
    return float(2 * model.width * total)


def same_boxes(system, padded, boxes, wanted):
    """Classes of the wanted voxels in raster order, each plane computed on the given rectangles only."""
    m = (padded.shape[0] - wanted.shape[0]) // 2
    rank = np.where(wanted, np.cumsum(wanted).reshape(wanted.shape) - 1, -1)
    rows = [torch.empty((int(wanted.sum()), 32), device=system.device) for _ in range(3)]
    for axis, position, row, column, height, width in boxes:
        plane = np.take(padded, m + position, axis)[row : row + height + 2 * m, column : column + width + 2 * m]
        plane = np.pad(plane, [(0, height + 2 * m - plane.shape[0]), (0, width + 2 * m - plane.shape[1])], constant_values=-1.0)
        there = np.take(rank, position, axis)[row : row + height, column : column + width]
        y, x = np.nonzero(there >= 0)
        features = look_at(system, system.generator.subnets[axis], plane)
        rows[axis][torch.from_numpy(there[y, x]).to(system.device)] = features[:, torch.from_numpy(y), torch.from_numpy(x)].T
    with torch.no_grad():
        logits = system.neck.logits(torch.cat(rows, 1).T[None, :, :, None])
    return logits[0, :, :, 0].argmax(0).cpu().numpy()


def by_scipy(scan, label, config):
    """(mask, Agatston score) as the authors' steps make them: grown above the threshold, by size, by heart, without specks."""
    spacing = tuple(config.data.grid.spacing_mm)
    mm3, cube = float(np.prod(spacing)), np.ones((3, 3, 3))
    threshold = scan.truth["threshold_hu"]
    heart = ndimage.distance_transform_edt(~scan.heart, spacing) <= config.scoring.heart_dilation_mm
    component, count = ndimage.label(scan.hu >= threshold, cube)
    votes = np.zeros((7, count + 1), np.int64)
    np.add.at(votes, (label[label > 0], component[label > 0]), 1)
    votes[:, 0] = 0
    winner = np.where(votes.any(0), votes.argmax(0), 0)
    winner[np.bincount(component.ravel(), minlength=count + 1) > np.ceil(MOST_MM3 / mm3)] = 0
    mask = np.where(heart, winner[component], 0)
    for number in range(1, 7):
        piece, pieces = ndimage.label(mask == number, cube)
        small = np.bincount(piece.ravel(), minlength=pieces + 1) <= 2
        mask[small[piece] & (piece > 0)] = 0
    return mask, observer.agatston(scan.hu, (mask >= 1) & (mask <= 3), spacing)
