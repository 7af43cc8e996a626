"""Rows and records on disk: CSV, JSON, tables for the terminal. Every file is written aside and renamed into place."""

import csv
import errno
import io
import json

import numpy as np

from cacjax.files.atomic import replace

SHOWN = ("scan", "status", "reason", "rule", "artery", "agatston", "volume_mm3", "mass_mg", "n_lesions", "category", "map_hu_mm3")
COLUMNS = (*SHOWN, "pseudo_mass", "threshold_hu", "kvp", "kernel", "spacing_mm", "patient", "study", "series")  # of scores.csv
DIGITS = 5  # significant ones of a number in scores.csv; the records keep all


def write_csv(path, rows, columns, digits=None):
    """Write dict `rows` with the given `columns`; what is None, NaN or missing becomes an empty cell. digits: of floats, significant."""

    def write(aside):
        with open(aside, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            table.writeheader()
            table.writerows(_filled(row, digits) for row in rows)

    replace(path, write)


def append_csv(path, rows, columns, digits=None):
    """Add rows to a file that `write_csv` began, in one piece: a reader sees whole rows, on a full disk (OSError) those so far."""
    lines = io.StringIO(newline="")
    csv.DictWriter(lines, columns, restval="", extrasaction="ignore").writerows(_filled(row, digits) for row in rows)
    with open(path, "ab", buffering=0) as file:
        before, added = file.tell(), lines.getvalue().encode()
        if (written := file.write(added)) < len(added):
            file.truncate(before)
            raise OSError(errno.ENOSPC, f"{written} of {len(added)} bytes could be written", str(path))


def _filled(row, digits):
    def cell(value):
        if _undefined(value):
            return ""
        return float(f"{value:.{digits}g}") if digits and isinstance(value, float) else value

    return {key: cell(value) for key, value in row.items()}


def write_json(path, record):
    """Write `record` as indented JSON; arrays become lists, NamedTuples objects, NaN and infinity null."""
    replace(path, lambda aside: aside.write_text(json.dumps(plain(record), indent=1, allow_nan=False) + "\n"))


def plain(value):
    """Python numbers, strings, lists and dicts of whatever a record holds."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, str):  # a path may hold bytes that are no UTF-8, which strict readers of JSON refuse: \xfc, as shells show it
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, bool | int) or value is None:
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value)


def table(rows, columns, *, digits=2):
    """A table for the terminal that is also Markdown. Numbers stand right with `digits` decimals, None is a dash."""
    cells = [[_cell(row.get(name), digits) for name in columns] for row in rows]
    widths = [max([len(name), *(len(line[k]) for line in cells)]) for k, name in enumerate(columns)]
    right = [any(isinstance(row.get(name), int | float) for row in rows) for name in columns]

    def line(values):
        return "| " + " | ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right)) + "|"
    return "\n".join([line(columns), rule, *(line(values) for values in cells)])


def _undefined(value):
    return value is None or (isinstance(value, float) and np.isnan(value))


def _cell(value, digits):
    if _undefined(value):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
