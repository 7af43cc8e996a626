"""Score a corpus of damaged, odd and good inputs, and tell what became of each: nothing lost, nothing guessed.

    python tools/fuzz.py --seed 1 --cases 3000 --out DIR [--scan DICOM_FOLDER] [--kind 'mha_*' ...] [--keep]

Every case is one input, made from a small synthetic CT or, one in twenty, from the scan that --scan names. Its kind (tools/corpus/)
says what must become of it, and follows, as all that is done by chance, from the seed and the number of the case. Cases are scored in
batches of 60 by `python -m cacjax.score`, with a limit of time and memory; where the program ends before its time, the scans without
a row are scored again in halves, until the one is found that ends it. A second call with the same DIR goes on. DIR/outcomes.csv has a
row per case, DIR/table.md the outcomes by kind; inputs that did not get what they must stay in DIR/cases, with --keep all do.

The exit code is 1 if a score was wrong, a scan refused or scored that must not be, a row missing, or a batch ended, hung or grew.
"""

import argparse
import collections
import csv
import fnmatch
import json
import math
import pathlib
import re
import shutil
import sys
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from corpus import clean, damage, dicom, files, formats, program, series, volumes  # noqa: F401  (most add their kinds)
from corpus.kinds import KINDS, Kind

from cacjax.report import tables

BATCH, REAL_SHARE = 60, 0.05
LAST_LINE = r"^\d+ scans: \d+ scored"  # of the program
TOLERANCE = 1e-4  # scores.csv has five digits
WRONG = (
    "wrong score",
    "refused wrongly",
    "scored wrongly",
    "not flagged",
    "internal error",
    "missing",
    "doubled",
    "ended",
    "hang",
    "memory",
)
OUTCOMES = ("right", "other code", *WRONG)
COLUMNS = ("case", "kind", "must", "scan", "outcome", "status", "reason", "agatston", "batch", "batch_ended", "peak_mb")


class Case(NamedTuple):
    """One input: its number, its kind by name, the name of the clean scan that it is made from."""

    index: int
    kind: str
    scan: str


def main(arguments=None) -> int:
    """Make, score and judge what the command line asks for; returns the exit code."""
    options = parse(arguments)
    out = options.out.absolute()
    begin(out, options)
    scans = {"synthetic": clean.synthetic()} | ({"real": clean.real(options.scan)} if options.scan else {})
    workdir = program.make_run(out / "run")
    truth = references(scans, workdir, out)
    cases = choose(options, tuple(scans))
    done = {int(row["case"]) for row in outcomes(out)}
    with tqdm(total=len(cases), unit="case", initial=sum(case.index in done for case in cases)) as progress:
        for number, start in enumerate(range(0, len(cases), BATCH)):
            batch = [case for case in cases[start : start + BATCH] if case.index not in done]
            if batch:
                rows = do_batch(number, batch, scans, truth, workdir, out, options)
                tables.append_csv(out / "outcomes.csv", rows, COLUMNS)
                progress.update(len(batch))
    rows = [row for row in outcomes(out) if int(row["case"]) in {case.index for case in cases}]
    return report(rows, out)


def parse(arguments):
    """The command line; argparse ends the program on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of everything that is done by chance (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=600, help="numbers of cases, from 0 (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for inputs, outcomes and the table")
    parser.add_argument("--scan", help="a real scan, which one case in twenty is made from")
    parser.add_argument("--kind", nargs="+", default=["*"], metavar="PATTERN", help="only the cases of these kinds")
    parser.add_argument("--keep", action="store_true", help="keep all inputs and what was written of them")
    parser.add_argument("--memory-mb", type=float, default=4000.0, help="end a batch that takes more (default: %(default)s)")
    return parser.parse_args(arguments)


def begin(out, options) -> None:
    """Make the folder, or go on in it. SystemExit where it holds another corpus."""
    settings = {"seed": options.seed, "scan": options.scan, "kinds": len(KINDS)}
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(f"error: {out} holds the corpus of {path.read_text().split()}, expected {settings}: choose another --out")
    tables.write_json(path, settings)
    if not (out / "outcomes.csv").exists():
        tables.write_csv(out / "outcomes.csv", [], COLUMNS)


def choose(options, scans) -> list[Case]:
    """The cases of the command line. Every kind has its turn before one has a second."""
    found, names = [], list(KINDS)
    for index in range(options.cases):
        turn, at = divmod(index, len(names))
        kind = names[np.random.default_rng([options.seed, turn]).permutation(len(names))[at]]
        real = np.random.default_rng([options.seed, index, 1]).random() < REAL_SHARE
        if any(fnmatch.fnmatch(kind, pattern) for pattern in options.kind):
            found.append(Case(index, kind, scans[-1] if real else scans[0]))
    return found


def make(case, scans, folder, seed) -> pathlib.Path:
    """The path of a case's input, made in `folder`; the same bytes for the same seed."""
    place = clean.Place(folder, scans[case.scan], np.random.default_rng([seed, case.index]))
    return KINDS[case.kind].make(place)


def references(scans, workdir, out) -> dict:
    """{name: (Agatston score, reason)} of the clean scans. SystemExit where that of the synthetic one is not known from its inserts."""
    path = out / "references.json"
    if not path.exists():
        shutil.rmtree(out / "references", ignore_errors=True)
        inputs = [clean.Place(out / "references" / name, scan, None).volume(f"{name}.nii.gz") for name, scan in scans.items()]
        end = program.score(inputs, workdir, out / "references/out", math.inf)
        rows = {row["scan"]: (float(row["agatston"] or "nan"), row["reason"]) for row in table_of(out / "references/out")}
        expected = clean.agatston()
        if set(rows) != set(scans) or not math.isclose(rows["synthetic"][0], expected, rel_tol=TOLERANCE):
            raise SystemExit(f"error: clean scans give {rows} ({end}), expected {expected} of the synthetic one: {out / 'references'}")
        tables.write_json(path, rows)
    return json.loads(path.read_text())


# ---- a batch


def do_batch(number, batch, scans, truth, workdir, out, options) -> list[dict]:
    """Rows of COLUMNS for the cases of a batch."""
    folders = {case.index: out / "cases" / f"{case.index:06}" for case in batch}
    for folder in folders.values():
        program.remove(folder)
    inputs = {case.index: make(case, scans, folders[case.index], options.seed) for case in batch}
    written = out / "written" / f"{number:04}"
    program.remove(written)
    more = ["--scores-only"] if number % 2 else []
    answers, ends, first = attempt(inputs, workdir, written, options.memory_mb, more)
    rows = []
    for case in batch:
        answer = answers.get(case.index, [])
        row = {"case": case.index, "kind": case.kind, "must": KINDS[case.kind].must, "scan": case.scan, "batch": number}
        row |= {"outcome": ends.get(case.index) or judge(KINDS[case.kind], answer, *truth[case.scan])}
        row |= {key: answer[0][key] for key in ("status", "reason", "agatston") if answer}
        rows.append(row | {"batch_ended": first.how, "peak_mb": round(first.peak_mb)})
        if not options.keep and row["outcome"] not in WRONG:
            program.remove(folders[case.index])
    if not options.keep and not any(row["outcome"] in WRONG for row in rows):
        program.remove(written)
    return rows


def attempt(inputs, workdir, written, memory_mb, more=()):
    """({case: its rows}, {case: how it ends the program}, `End` of the first run) of {case: input}."""
    end = program.score(list(inputs.values()), workdir, written, memory_mb, more)
    answers = answers_of(written)
    left = {index: path for index, path in inputs.items() if index not in answers}
    if not end.how and left and not re.search(LAST_LINE, written.with_suffix(".log").read_text(errors="replace"), re.MULTILINE):
        end = end._replace(how="ended")
    if not end.how or not left:
        return answers, {}, end
    if len(inputs) == 1:
        return answers, dict.fromkeys(inputs, end.how), end
    ends, half = {}, -(-len(left) // 2)
    for name, part in (("a", list(left.items())[:half]), ("b", list(left.items())[half:])):
        if part:
            found, endings, _ = attempt(dict(part), workdir, written.with_name(written.name + name), memory_mb, more)
            answers, ends = answers | found, ends | endings
    return answers, ends, end


def table_of(out) -> list[dict]:
    """The rows of scores.csv, none where there is no such file."""
    path = out / "scores.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def answers_of(out) -> dict:
    """{case: rows of scores.csv}; a row's record tells the path, and this the case."""
    found, named = collections.defaultdict(list), {}
    for path in out.glob("*.json"):
        record = json.loads(path.read_text())
        number = re.search(r"/cases/(\d{6})/", str(record.get("path")))
        if number:
            named[record["scan"]] = int(number[1])
    for row in table_of(out):
        if row["scan"] in named:
            found[named[row["scan"]]].append(row)
    return dict(found)


def judge(kind: Kind, rows, agatston, reason) -> str:
    """The outcome of one case, of OUTCOMES. agatston, reason: of the clean scan."""
    if len(rows) != 1:
        return "doubled" if rows else "missing"
    row = rows[0]
    if row["reason"] == "internal_error":
        return "internal error"
    if row["status"] != "scored":
        if kind.must in ("same", "flagged"):
            return "refused wrongly"
        return "right" if not kind.codes or row["reason"] in kind.codes else "other code"
    if kind.must == "refused":
        return "scored wrongly"
    ratio = float(row["agatston"]) / agatston
    limits = {"answer": (0, math.inf), "about": (0.5, 2)}
    low, high = limits.get(kind.must, (1 - TOLERANCE, 1 + TOLERANCE))
    if not low <= ratio <= high:
        return "wrong score"
    return "not flagged" if kind.must == "flagged" and row["reason"] in ("", reason) else "right"


# ---- the table


def outcomes(out) -> list[dict]:
    """The rows of outcomes.csv so far."""
    with open(out / "outcomes.csv", newline="") as file:
        return list(csv.DictReader(file))


def report(rows, out) -> int:
    """Print and write the outcomes by kind; returns the exit code."""
    by_kind = collections.defaultdict(collections.Counter)
    for row in rows:
        for kind in (row["kind"], "all"):
            by_kind[kind][row["outcome"]] += 1
    order = [*(name for name in KINDS if name in by_kind), "all"]
    lines = [
        {"kind": name, "must": KINDS[name].must if name in KINDS else "", "cases": by_kind[name].total()} | dict(by_kind[name])
        for name in order
    ]
    text = tables.table(lines, ("kind", "must", "cases", *OUTCOMES))
    ended = collections.Counter(how for _, how in {(row["batch"], row["batch_ended"]) for row in rows} if how)
    text += f"\n\nbatches: {len({row['batch'] for row in rows})}, ended before their time: {ended.total()} {dict(ended) or ''}"
    text += f"\npeak memory of a batch: {max((float(row['peak_mb']) for row in rows), default=0):.0f} MB"
    (out / "table.md").write_text(text + "\n")
    print(text)
    return int(ended.total() > 0 or any(row["outcome"] in WRONG for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
