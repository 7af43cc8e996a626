"""Agreement of two measurements of the same scans: ICC, kappa, rank correlation, Bland-Altman limits, C-index. Host arrays.

Lists have one entry per scan, `found` what was detected and `reference` the truth, in any one unit. What is not defined, such as
the correlation of a list of equal numbers, is NaN with a reason; what cannot be meant, such as lists of unequal length, a ValueError.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from cacjax.kernels import scores

HALF_NORMAL = 1.96 * np.sqrt(np.pi / 2)  # from the mean of |d| to the 95 % limit of d, if d is normal about 0
SHAPES = {"sqrt": np.sqrt, "linear": lambda mean: mean}
ARTERIES = ("CAC", "LAD", "LCX", "RCA")
QUANTITIES = {name: (f"found_{key}", f"reference_{key}") for name, key in (("volume_mm3", "mm3"), ("lesions", "lesions"))}
QUANTITIES |= {"agatston": ("found_agatston", "reference_agatston")}

COLUMNS = ("arm", "stage", "artery", "quantity", "n", "spearman", "spearman_low", "spearman_high", "icc", "icc_low", "icc_high")
COLUMNS += ("bias", "coefficient", "relative_difference", "n_both_positive")
COLUMNS += ("kappa", "kappa_low", "kappa_high", "accuracy", "c_index", "c_index_printed", "reason")
SHOWN = ("arm", "stage", "quantity", "n", "Spearman", "ICC", "bias", "limits", "kappa", "accuracy", "C-index")


class Estimate(NamedTuple):
    """A statistic with its 95 % confidence interval; NaN with a `reason` where it is not defined."""

    value: float
    low: float
    high: float
    reason: str = ""


class Limits(NamedTuple):
    """Bland-Altman limits that widen with the mean M of both: bias ± (base + coefficient f(M)), `shape` naming f ("sqrt", "linear").

    slope: that of |difference| on f(M), so that coefficient = 2.4565 slope. NaN with a `reason` where the means do not vary.
    """

    bias: float
    base: float
    coefficient: float
    slope: float
    shape: str
    reason: str = ""

    def half_width(self, mean):
        """Distance of either limit from the bias at these means, never below 0."""
        return np.maximum(self.base + self.coefficient * SHAPES[self.shape](np.asarray(mean, np.float64)), 0.0)


def undefined(reason):
    """An Estimate without a value."""
    return Estimate(np.nan, np.nan, np.nan, reason)


def icc_a1(ratings, *, level=0.95):
    """ICC(A,1): absolute agreement of single measurements, two-way random, for ratings [n subjects, k raters].

    Source: Shrout & Fleiss 1979, their ICC(2,1); interval by McGraw & Wong 1996 (F with Satterthwaite's degrees of freedom). Raises
    ValueError for fewer than two subjects or raters, or for numbers that are not finite.
    """
    ratings = np.asarray(ratings, np.float64)
    if ratings.ndim != 2 or min(ratings.shape) < 2 or not np.isfinite(ratings).all():
        raise ValueError(f"expected finite ratings [n >= 2, k >= 2], got shape {ratings.shape}")
    n, k = ratings.shape
    if np.ptp(ratings) == 0:
        return undefined("all values are equal")
    rows, columns = ratings.mean(1, keepdims=True), ratings.mean(0, keepdims=True)
    between = k * rows.var(ddof=1)
    raters = n * columns.var(ddof=1)
    error = ((ratings - rows - columns + ratings.mean()) ** 2).sum() / ((n - 1) * (k - 1))
    spread = between + (k - 1) * error + k * (raters - error) / n
    if spread <= 0:
        return undefined("neither subjects nor raters differ")
    value = (between - error) / spread
    if value >= 1:
        return Estimate(1.0, 1.0, 1.0)
    a, b = k * value / (n * (1 - value)), 1 + k * value * (n - 1) / (n * (1 - value))
    squares = (a * raters) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    freedom = max((a * raters + b * error) ** 2 / squares, 1e-6) if squares > 0 else 1.0
    q, rest = stats.f.ppf(((1 - level) / 2, (1 + level) / 2), freedom, n - 1), k * raters + (k * n - k - n) * error
    low, high = n * (q * between - error) / (rest + n * q * between)
    return Estimate(float(value), float(low), float(high))


def confusion(found, reference, n_categories):
    """Counts [n_categories, n_categories] of scans: row the reference's category, column the found one, both from 0."""
    found, reference = np.asarray(found, int), np.asarray(reference, int)
    if found.shape != reference.shape:
        raise ValueError(f"expected lists of equal length, got {found.shape} and {reference.shape}")
    counts = np.zeros((n_categories, n_categories), int)
    np.add.at(counts, (reference, found), 1)
    return counts


def kappa(counts, *, weights="linear", level=0.95):
    """Cohen's weighted kappa of counts [K, K]. weights: "linear", "quadratic", "none" (any disagreement counts 1) or those of
    disagreement, [K, K].

    Source: Cohen 1968; interval by the asymptotic error of Fleiss, Cohen & Everitt 1969. Raises ValueError for counts that are not
    square, negative or empty.
    """
    share = _shares(counts)
    apart = np.abs(np.subtract.outer(np.arange(len(share)), np.arange(len(share))))
    named = {"linear": apart, "quadratic": apart**2, "none": apart > 0}
    cost = np.asarray(named[weights] if isinstance(weights, str) else weights, np.float64)
    row, column = share.sum(1), share.sum(0)
    by_chance = float(row @ cost @ column)
    if by_chance == 0:
        return undefined("both use one and the same category")
    value = 1 - float((cost * share).sum()) / by_chance
    agree = 1 - cost / cost.max()
    expected = 1 - by_chance / cost.max()
    marginal = np.add.outer(agree @ column, row @ agree)
    spread = (share * (agree - marginal * (1 - value)) ** 2).sum() - (value - expected * (1 - value)) ** 2
    error = np.sqrt(max(float(spread), 0.0) / np.sum(counts)) / (1 - expected)
    half = stats.norm.ppf((1 + level) / 2) * error
    return Estimate(value, max(value - half, -1.0), min(value + half, 1.0))


def accuracy(counts):
    """Share of scans in the same category. Raises ValueError as `kappa`."""
    return float(np.trace(_shares(counts)))


def spearman(found, reference, *, level=0.95):
    """Spearman's rank correlation, ties at their mean rank; interval by Bonett & Wright 2000 (from four pairs on).

    Raises ValueError for fewer than two pairs, unequal lengths or numbers that are not finite.
    """
    found, reference = _pairs(found, reference)
    for values, name in ((found, "found"), (reference, "reference")):
        if np.ptp(values) == 0:
            return undefined(f"all {name} values are equal")
    value = float(stats.spearmanr(found, reference).statistic)
    if len(found) < 4 or abs(value) > 1 - 1e-12:
        return Estimate(value, *((np.nan, np.nan) if len(found) < 4 else (value, value)))
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt((1 + value**2 / 2) / (len(found) - 3))
    return Estimate(value, *(float(np.tanh(np.arctanh(value) + sign * half)) for sign in (-1, 1)))


def relative_differences(found, reference, *, over="positive"):
    """|a - b| over the mean of a and b, one entry per pair that counts: where "positive" both are, or "any" of the two, which gives 2
    where only one is (van Velzen 2022, tables 3 and 4: "Pos" and "All"), or "all", where two zeros give 0. Raises ValueError as
    `spearman`."""
    found, reference = _pairs(found, reference)
    counted = {"positive": np.minimum(found, reference) > 0, "any": np.maximum(found, reference) > 0, "all": np.full(len(found), True)}
    difference, mean = np.abs(found - reference), (found + reference) / 2
    return np.divide(difference, mean, out=np.zeros_like(mean), where=mean > 0)[counted[over]]


def bland_altman(found, reference, *, shape="sqrt"):
    """`Limits` of found - reference whose width follows the mean of both, fitted to the absolute differences.

    shape: "sqrt", through the origin, or "linear", with an intercept. Source: Bland & Altman 1999, Sevrukov 2005 (as cited by Zhai
    2022). Raises ValueError as `spearman`, and for negative means under "sqrt".
    """
    found, reference = _pairs(found, reference)
    difference, mean = found - reference, (found + reference) / 2
    if shape == "sqrt" and mean.min() < 0:
        raise ValueError(f"expected means of at least 0, got {mean.min():g}")
    bias, x = float(difference.mean()), SHAPES[shape](mean)
    varies = np.any(x > 0) if shape == "sqrt" else np.ptp(x) > 0
    if not varies:
        return Limits(bias, np.nan, np.nan, np.nan, shape, "all means are equal" if shape == "linear" else "all values are 0")
    size = np.abs(difference)
    slope = float(x @ size / (x @ x)) if shape == "sqrt" else float(np.cov(x, size)[0, 1] / x.var(ddof=1))
    base = 0.0 if shape == "sqrt" else float(size.mean() - slope * x.mean())
    return Limits(bias, HALF_NORMAL * base, HALF_NORMAL * slope, slope, shape)


def c_index(found, reference, *, event=None, kind="harrell"):
    """Share of pairs of scans that `found` ranks as `reference` does, 0 to 1; NaN where no pair can be ranked.

    "harrell": over pairs of different reference, ties in found count a half; event: False where the reference is censored (a time
    not reached), which counts as later than an equal time that was. "printed": over all pairs, ties count nothing, as the formula
    in Gogin 2021 reads, which stays below 1 wherever references tie. Raises ValueError as `spearman`.
    """
    found, reference = _pairs(found, reference)
    event = np.ones(len(found), bool) if event is None else np.asarray(event, bool)
    before = reference[:, None] < reference
    before = (before | ((reference[:, None] == reference) & ~event)) & event[:, None]
    ranked = before & (found[:, None] < found)
    if kind == "printed":
        return float(ranked.sum() / (len(found) * (len(found) - 1) / 2))
    tied = before & (found[:, None] == found)
    return float((ranked.sum() + tied.sum() / 2) / before.sum()) if before.any() else float("nan")


def rows(records):
    """Agreement per arm, stage, artery and quantity, a list of dicts, from `records` per scan as `cacjax.evaluate` makes them.

    Over all scans with a prediction, with calcium or not. Agatston scores, where known, bring the risk categories along.
    """
    groups = {}
    for record in records:
        if record["artery"] in ARTERIES:
            groups.setdefault((record["arm"], record["stage"], record["artery"]), []).append(record)
    out = []
    for (arm, stage, artery), group in groups.items():
        for quantity, keys in QUANTITIES.items():
            pairs = np.array([[record.get(key, np.nan) for key in keys] for record in group], np.float64)
            pairs = pairs[np.isfinite(pairs).all(1)]
            if len(pairs):
                row = {"arm": arm, "stage": stage, "artery": artery, "quantity": quantity} | measure(*pairs.T)
                if (artery, quantity) == ("CAC", "agatston"):
                    row |= categories(*pairs.T, scheme=scheme_of((r["found_agatston"], r["category"]) for r in group if r.get("category")))
                out.append(row)
    return out


def measure(found, reference):
    """Spearman, ICC, limits and relative difference of one quantity as a dict; with a reason where there is one scan only."""
    if len(found) < 2:
        return {"n": len(found), "reason": "fewer than two scans"}
    ranks, icc, limits = spearman(found, reference), icc_a1(np.stack([found, reference], 1)), bland_altman(found, reference)
    relative = relative_differences(found, reference)
    reasons = dict.fromkeys(each.reason for each in (ranks, icc, limits) if each.reason)
    return {
        "n": len(found),
        **_named("spearman", ranks),
        **_named("icc", icc),
        "bias": limits.bias,
        "coefficient": limits.coefficient,
        "relative_difference": float(relative.mean()) if len(relative) else float("nan"),
        "n_both_positive": len(relative),
        "reason": "; ".join(reasons),
    }


def scheme_of(scored):
    """The first scheme of risk categories by which (Agatston score, name of its category) of `scored` belong together, or None."""
    scored = list(scored)
    fits = lambda scheme: all(scheme.names[scores.category(score, scheme=scheme)] == name for score, name in scored)  # noqa: E731
    return next(filter(fits, scores.SCHEMES.values()), None)


def categories(found, reference, *, scheme):
    """Agreement of risk categories as a dict, from Agatston scores; only a reason for a `scheme` that is not known, None."""
    if scheme is None:
        return {"reason": "the risk categories are of no scheme that is known"}
    found, reference = (scores.category(values, scheme=scheme) for values in (found, reference))
    counts = confusion(found, reference, len(scheme.names))
    ranked, printed = (c_index(found, reference, kind=kind) if len(found) > 1 else float("nan") for kind in ("harrell", "printed"))
    return {
        **_named("kappa", kappa(counts)),
        "accuracy": accuracy(counts),
        "c_index": ranked,
        "c_index_printed": printed,
        "categories": scheme.names,
        "confusion": counts,
    }


def shown(row):
    """A row as the terminal shows it: intervals in brackets, the limits about the bias as a multiple of the root of the mean."""
    cells = {"arm": row["arm"], "stage": row.get("stage"), "quantity": row["quantity"], "n": row["n"]}
    for title, name in (("Spearman", "spearman"), ("ICC", "icc"), ("kappa", "kappa")):
        value, low, high = (row.get(key, np.nan) for key in (name, f"{name}_low", f"{name}_high"))
        interval = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        cells[title] = None if np.isnan(value) else f"{value:.2f}{interval}"
    bias, coefficient = (row.get(key, np.nan) for key in ("bias", "coefficient"))
    for title, name in (("accuracy", "accuracy"), ("C-index", "c_index")):
        cells[title] = None if np.isnan(row.get(name, np.nan)) else f"{row[name]:.3f}"
    cells["bias"] = None if np.isnan(bias) else f"{bias:+.1f}"
    return cells | {"limits": None if np.isnan(coefficient) else f"± {coefficient:.1f} √mean"}


def _named(name, estimate):
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _shares(counts):
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or (counts < 0).any() or not counts.sum() > 0:
        raise ValueError(f"expected counts [K, K] of at least one scan, got {counts.tolist()}")
    return counts / counts.sum()


def _pairs(found, reference):
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    if found.ndim != 1 or found.shape != reference.shape:
        raise ValueError(f"expected two lists of equal length, got shapes {found.shape} and {reference.shape}")
    if len(found) < 2:
        raise ValueError(f"expected at least two pairs, got {len(found)}")
    if not (np.isfinite(found).all() and np.isfinite(reference).all()):
        raise ValueError("expected finite numbers, got NaN or infinity")
    return found, reference
