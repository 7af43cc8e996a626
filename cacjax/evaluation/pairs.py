"""Reproducibility: what two scans of one patient score, against each other, from the scores.csv of each arm alone; no voxels.

A row is of one arm, group, rule, artery and quantity, over "all" pairs, those with calcium in "any" scan of the two, or the "positive"
ones, with calcium in both: mean and median relative difference, ICC(A,1), Bland-Altman bias and limits, and of the Agatston score of CAC
the risk categories. Source: van Velzen 2022, tables 3 to 5, whose "All" is "any" here. An arm that finds nothing agrees with itself:
every row also says how often calcium was found in `both` scans, `one` or `none`, and the mean of all scores.
"""

import csv
import itertools
from typing import NamedTuple

import numpy as np

from cacjax.evaluation import agreement, pictures
from cacjax.files.manifest import ManifestError
from cacjax.report import tables

OVER = {"all": lambda least, most: least >= 0, "any": lambda least, most: most > 0, "positive": lambda least, most: least > 0}
QUANTITIES = ("agatston", "volume_mm3", "mass_mg")
FURTHER = ("pseudo_mass", "map_hu_mm3")  # quantities of scores that have them
KEYS = ("arm", "group", "rule", "artery", "quantity", "over")
CONTROL = ("both", "one", "none")
MEASURED = ("relative_difference", "relative_difference_median", "icc", "icc_low", "icc_high", "bias", "coefficient")
MEASURED += ("kappa", "kappa_low", "kappa_high", "accuracy", "reason")
COLUMNS = (*KEYS, "n", "missing", "mean", *CONTROL, *MEASURED)
SHOWN = ("arm", "group", "rule", "artery", "over", "n", "mean", *CONTROL, "rel. diff. %", "ICC", "bias", "limits", "kappa")
NEEDED = ("scan", "status", "reason", "rule", "artery", "category", *QUANTITIES)
WORDS = pictures.Words("second scan", "first scan", "Agatston", "coronary calcium in two scans of one patient", alike=True)


class Pair(NamedTuple):
    """Two scans of one patient, by their names in scores.csv; group "": none."""

    name: str
    first: str
    second: str
    group: str = ""


def read(path):
    """The pairs that a CSV file lists, columns pair, first, second and, if wanted, group. Raises ManifestError."""
    pairs = []
    for line, cells in _rows(path, ("pair", "first", "second"), "a file with the columns pair, first, second and, if wanted, group"):
        pair = Pair(cells["pair"], cells["first"], cells["second"], cells.get("group", ""))
        if not all(pair[:3]):
            raise ManifestError(f"{path}, line {line}: expected pair, first and second to be filled, got {', '.join(map(repr, pair[:3]))}")
        if pair.first == pair.second:
            raise ManifestError(f"{path}, line {line}: expected two scans, got {pair.first} twice")
        if any(pair.name == other.name for other in pairs):
            raise ManifestError(f"{path}, line {line}: expected a different name for each pair, got {pair.name} again")
        pairs.append(pair)
    if not pairs:
        raise ManifestError(f"{path}: expected at least one pair, got none")
    return pairs


def read_scores(folder):
    """{scan: {(rule, artery): row}} of the scores.csv in a folder; ("", "") is the key of a refused scan. Raises ManifestError."""
    path, found = folder / "scores.csv", {}
    for line, cells in _rows(path, NEEDED, "the scores.csv that cacjax.score writes"):
        for name in (*QUANTITIES, *FURTHER):
            try:
                cells[name] = float(cells.get(name) or "nan")
            except ValueError:
                raise ManifestError(f"{path}, line {line}: expected a number in {name}, got {cells[name]!r}") from None
        found.setdefault(cells["scan"], {})[cells["rule"], cells["artery"]] = cells
    return found


def _rows(path, columns, expected):
    """(line, cells) of a CSV file that has these columns. Raises ManifestError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if lacking := [name for name in columns if name not in (table.fieldnames or ())]:
                found = ", ".join(table.fieldnames or ()) or "an empty file"
                raise ManifestError(f"{path}: expected {expected}, got no {', '.join(lacking)} in {found}")
            return [(table.line_num, {key: (value or "").strip() for key, value in cells.items() if key}) for cells in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: expected {expected}, got {error}") from None


def evaluate(arms, path):
    """Compare the scans of each pair in every arm ({name: folder of predictions}).

    Returns a dict: n, missing (list of arm, scan and reason), rows (dicts), and for the picture points {arm: list of (pair, second, first)}
    of the Agatston score of CAC by the first rule. Raises ManifestError.
    """
    pairs, result = read(path), {"missing": [], "rows": [], "points": {}}
    for arm, folder in arms.items():
        table = read_scores(folder)
        keys = list(dict.fromkeys(key for cells in table.values() for key in cells if all(key)))
        scans = dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))
        result["missing"] += [(arm, name, reason) for name in scans if (reason := _reason(table, name, keys))]
        result["rows"] += [{"arm": arm, **row} for key in keys for row in rows_of(table, pairs, *key)]
        main = next((key for key in keys if key[1] == "CAC"), None)
        scored = zip(pairs, values_of(table, pairs, *main, "agatston")) if main else ()
        result["points"][arm] = [(pair.name, second, first) for pair, (first, second) in scored if np.isfinite(first + second)]
    return result | {"n": len(pairs)}


def _reason(table, name, keys):
    """Why a scan lacks scores, "" where it does not."""
    if name not in table:
        return "not in scores.csv"
    if ("", "") in table[name]:
        return f"refused: {table[name]['', '']['reason']}"
    return next((f"no row for rule {rule} and {artery}" for rule, artery in keys if (rule, artery) not in table[name]), "")


def values_of(table, pairs, rule, artery, quantity):
    """What both scans of each pair score, [n, 2], NaN where that is not known."""
    score = lambda name: table.get(name, {}).get((rule, artery), {}).get(quantity, np.nan)  # noqa: E731
    return np.array([[score(pair.first), score(pair.second)] for pair in pairs], np.float64)


def rows_of(table, pairs, rule, artery):
    """The rows of one arm, rule and artery: every quantity, group of pairs (first "", all of them) and kind of pair."""
    scored = [(cells["agatston"], cells["category"]) for scan in table.values() if (cells := scan.get((rule, artery)))]
    scheme = agreement.scheme_of(scored)
    groups = ["", *sorted({pair.group for pair in pairs} - {""})]
    for quantity, group in itertools.product((*QUANTITIES, *FURTHER), groups):
        values = values_of(table, [pair for pair in pairs if group in ("", pair.group)], rule, artery, quantity)
        known = values[np.isfinite(values).all(1)]
        for over, counts in OVER.items() if len(known) else ():
            kept = known[counts(known.min(1), known.max(1))]
            row = {"group": group, "rule": rule, "artery": artery, "quantity": quantity, "over": over}
            row |= {"missing": len(values) - len(known)} | measure(kept)
            if len(kept) > 1 and (artery, quantity) == ("CAC", "agatston"):
                row |= agreement.categories(*kept.T, scheme=scheme)
            yield row


def measure(values):
    """Agreement of both columns of values [n, 2], at least 0, as a dict.

    mean: over all scans. both, one, none: share of pairs in which as many scans score more than 0.
    """
    if len(values) == 0:
        return {"n": 0, "reason": "no such pairs"}
    positive = (values > 0).sum(1)
    row = {"mean": values.mean(), **{name: float((positive == n).mean()) for name, n in zip(CONTROL, (2, 1, 0))}}
    row |= agreement.measure(*values.T)
    if len(values) > 1:
        relative = agreement.relative_differences(*values.T, over="all")
        row |= {"relative_difference": float(relative.mean()), "relative_difference_median": float(np.median(relative))}
    return row


def tell(result):
    """The tables for the terminal, as texts: of coronary calcium, of each artery; and what warns of an arm that finds nothing."""
    for wanted in (("CAC",), ("LAD", "LCX", "RCA")):
        if rows := [shown(row) for row in result["rows"] if row["artery"] in wanted and row["quantity"] == "agatston"]:
            grouped = any(row["group"] for row in rows)
            yield tables.table(rows, [name for name in SHOWN if grouped or name != "group"])
    for row in result["rows"]:
        if (row["artery"], row["quantity"], row["over"], row["group"], row.get("mean")) == ("CAC", "agatston", "all", "", 0):
            yield f"{row['arm']} finds no calcium in any scan by rule {row['rule']}: its reproducibility says nothing"


def shown(row):
    """A row as the terminal shows it: relative difference as mean and, in brackets, median; see `agreement.shown`."""
    mean, median = (row.get(f"relative_difference{end}", np.nan) for end in ("", "_median"))
    relative = None if np.isnan(mean) else f"{100 * mean:.0f} ({100 * median:.0f})"
    return {key: row.get(key) for key in SHOWN} | agreement.shown(row) | {"rel. diff. %": relative}


def write(result, out, arms):
    """Write reproducibility.csv, reproducibility.json and reproducibility.png; returns the first."""
    tables.write_csv(out / "reproducibility.csv", result["rows"], COLUMNS)
    record = {"predictions": {arm: str(folder) for arm, folder in arms.items()}, "n_pairs": result["n"]}
    tables.write_json(out / "reproducibility.json", record | {key: result[key] for key in ("missing", "rows")})
    pictures.scatter(out / "reproducibility.png", result["points"], words=WORDS)
    return out / "reproducibility.csv"
