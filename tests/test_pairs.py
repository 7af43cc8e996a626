"""Reproducibility between two scans of one patient, through the command line, against numbers worked by hand."""

import csv
import json

import numpy as np
import pytest
from matplotlib.image import imread

from cacjax import evaluate
from cacjax.evaluation import pairs
from cacjax.files.manifest import ManifestError
from cacjax.kernels import scores
from cacjax.report import tables

COLUMNS = ("scan", "status", "reason", "rule", "artery", "agatston", "volume_mm3", "mass_mg", "n_lesions", "category")
# Five patients. By hand: relative differences 1/3, 2/9 (both positive), 2 (one), 0 and 0 (none).
FIRST, SECOND = [10.0, 50.0, 8.0, 0.0, 0.0], [14.0, 40.0, 0.0, 0.0, 0.0]


def scored(scan, agatston, *, artery="CAC", rule="default", scheme="default", **more):
    """A row of scores.csv; the volume is twice the score."""
    scheme = scores.SCHEMES[scheme]
    name = scheme.names[scores.category(agatston, scheme=scheme)] if artery == "CAC" else None
    row = {"scan": scan, "status": "scored", "rule": rule, "artery": artery, "agatston": agatston, "volume_mm3": 2 * agatston}
    return row | {"n_lesions": 1, "category": name} | more


def write(folder, first=FIRST, second=SECOND, **options):
    """scores.csv of scans a0, b0, a1, b1, ..., as `cacjax.score` writes it."""
    rows = [scored(f"{which}{k}", score, **options) for which, listed in (("a", first), ("b", second)) for k, score in enumerate(listed)]
    tables.write_csv(folder / "scores.csv", rows, COLUMNS)
    return rows


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("pair,first,second\n" + "".join(f"p{k},a{k},b{k}\n" for k in range(5)))
    return path


def run(listed, out, *arms):
    return evaluate.main(["--predictions", *map(str, arms), "--pairs", str(listed), "--out", str(out)])


def rows_of(out, **keys):
    with open(out / "reproducibility.csv") as file:
        return [row for row in csv.DictReader(file) if all(row[k] == v for k, v in keys.items())]


def test_pairs_by_hand(listed, tmp_path, capsys):
    """Mean and median of (1/3, 2/9, 2, 0, 0), of the first three, of the first two; bias (-4 + 10 + 8) / 5."""
    write(tmp_path / "net")
    assert run(listed, tmp_path / "out", f"net={tmp_path / 'net'}") == 0
    by_kind = {row["over"]: row for row in rows_of(tmp_path / "out", artery="CAC", quantity="agatston")}
    relative = {over: [float(row["relative_difference"]), float(row["relative_difference_median"])] for over, row in by_kind.items()}
    assert relative["all"] == pytest.approx([(1 / 3 + 2 / 9 + 2) / 5, 2 / 9])
    assert relative["any"] == pytest.approx([(1 / 3 + 2 / 9 + 2) / 3, 1 / 3])
    assert relative["positive"] == pytest.approx([5 / 18, 5 / 18])
    assert [by_kind[over]["n"] for over in ("all", "any", "positive")] == ["5", "3", "2"]
    whole = by_kind["all"]
    assert [float(whole[name]) for name in ("both", "one", "none")] == pytest.approx([0.4, 0.2, 0.4])
    assert float(whole["mean"]) == pytest.approx(122 / 10) and float(whole["bias"]) == pytest.approx(14 / 5)
    # |d| = 4, 10, 8 at means 12, 45, 4: the slope through the origin on their roots.
    slope = (4 * 12**0.5 + 10 * 45**0.5 + 8 * 4**0.5) / (12 + 45 + 4)
    assert float(whole["coefficient"]) == pytest.approx(1.96 * (np.pi / 2) ** 0.5 * slope)
    # Squares between patients 2 (.2² + 32.8² + 8.2² + 2 12.2²), between scans 10 · 1.4², of the rest (4² + 10² + 8²) / 2 - 19.6.
    between, raters, error = 2881.6 / 4, 19.6, 70.4 / 4
    assert float(whole["icc"]) == pytest.approx((between - error) / (between + error + 2 * (raters - error) / 5))
    assert {row["quantity"] for row in rows_of(tmp_path / "out")} == {"agatston", "volume_mm3"}, "no mass was given"
    volume = rows_of(tmp_path / "out", quantity="volume_mm3", over="all")[0]
    assert float(volume["icc"]) == pytest.approx(float(whole["icc"])) and float(volume["bias"]) == pytest.approx(28 / 5)
    told = capsys.readouterr().out
    assert "51 (22)" in told and "85 (33)" in told and "28 (28)" in told and "5 pairs, 1 predictions, 0 missing" in told


def test_kappa_by_hand(listed, tmp_path):
    """10|14, 50|40, 8|0 and twice 0|0 are 1|2, 2|2, 1|0, 0|0, 0|0: apart 2 of 5; by chance (2 (3·0 + 2·2) + 2 (3 + 2) + 3·2) / 25."""
    write(tmp_path / "net")
    run(listed, tmp_path / "out", tmp_path / "net")
    (row,) = rows_of(tmp_path / "out", artery="CAC", quantity="agatston", over="all")
    assert float(row["kappa"]) == pytest.approx(1 - (2 / 5) / (24 / 25)) and float(row["accuracy"]) == pytest.approx(3 / 5)
    assert float(row["kappa_low"]) < float(row["kappa"]) < float(row["kappa_high"])


def test_categories_are_those_that_the_scores_were_given(listed, tmp_path):
    """By van Velzen's scheme 10|14, 50|40 and 8|0 are I|II, II|II and I|I: one disagreement of five."""
    write(tmp_path / "net", scheme="van_velzen")
    run(listed, tmp_path / "out", tmp_path / "net")
    (row,) = rows_of(tmp_path / "out", artery="CAC", quantity="agatston", over="all")
    assert float(row["accuracy"]) == pytest.approx(4 / 5)
    # Rows (4 I, 1 II) against columns (3 I, 2 II): expected disagreement (4·2 + 1·3) / 25.
    assert float(row["kappa"]) == pytest.approx(1 - (1 / 5) / (11 / 25))
    rows = [row | {"category": "no such name"} for row in write(tmp_path / "odd")]
    tables.write_csv(tmp_path / "odd" / "scores.csv", rows, COLUMNS)
    run(listed, tmp_path / "out", tmp_path / "odd")
    (row,) = rows_of(tmp_path / "out", artery="CAC", quantity="agatston", over="all")
    assert row["kappa"] == "" and row["reason"] == "the risk categories are of no scheme that is known"


@pytest.mark.parametrize(
    ("concordant", "mean", "discordant", "undetected", "expected"),
    [(26, 0.61, 5, 0, 0.83), (5, 0.35, 6, 3, 1.25), (3, 0.33, 2, 1, 0.99), (34, 0.55, 13, 4, 0.95)],
)
def test_counts_of_van_velzen_2022_give_its_relative_differences(concordant, mean, discordant, undetected, expected):
    """Table 3, proposed method (LAD, RCA, LCX, CAC): "Pos" over concordant pairs, "All" with 2 for each discordant one."""
    positive = [((2 + mean) / (2 - mean), 1.0)] * concordant
    values = np.array(positive + [(3.0, 0.0)] * discordant + [(0.0, 0.0)] * undetected)
    found = values[values.max(1) > 0]
    assert pairs.measure(found)["relative_difference"] == pytest.approx(expected, abs=0.02)
    assert pairs.measure(values)["both"] == pytest.approx(concordant / len(values))


def test_an_arm_that_finds_nothing_is_told(listed, tmp_path, capsys):
    """No relative difference over pairs with calcium, no ICC, no kappa; and a warning: agreement on nothing is no reproducibility."""
    write(tmp_path / "net")
    write(tmp_path / "blind", [0.0] * 5, [0.0] * 5)
    assert run(listed, tmp_path / "out", tmp_path / "net", tmp_path / "blind") == 0
    by_kind = {row["over"]: row for row in rows_of(tmp_path / "out", arm="blind", artery="CAC", quantity="agatston")}
    assert (by_kind["all"]["none"], by_kind["all"]["mean"], by_kind["all"]["icc"], by_kind["all"]["kappa"]) == ("1.0", "0.0", "", "")
    assert by_kind["any"]["n"] == "0" and by_kind["any"]["relative_difference"] == ""
    told = capsys.readouterr().out
    assert "blind finds no calcium in any scan by rule default" in told and "net finds no" not in told


def test_arms_rules_arteries_and_groups_apart(tmp_path):
    rows = []
    for rule, factor in (("default", 1.0), ("adjusted", 3.0)):
        for artery in ("CAC", "LAD"):
            for which, listed in (("a", FIRST), ("b", SECOND)):
                rows += [scored(f"{which}{k}", factor * score, artery=artery, rule=rule) for k, score in enumerate(listed)]
    tables.write_csv(tmp_path / "net" / "scores.csv", rows, COLUMNS)
    listed = tmp_path / "pairs.csv"
    groups = ("held", "held", "free", "free", "free")
    listed.write_text("pair,first,second,group\n" + "".join(f"p{k},a{k},b{k},{group}\n" for k, group in enumerate(groups)))
    assert run(listed, tmp_path / "out", tmp_path / "net") == 0
    found = rows_of(tmp_path / "out", quantity="agatston", over="all")
    assert {(r["rule"], r["artery"], r["group"]): r["n"] for r in found} == {
        (rule, artery, group): n
        for rule in ("default", "adjusted")
        for artery in ("CAC", "LAD")
        for group, n in (("", "5"), ("held", "2"), ("free", "3"))
    }
    bias = {(r["rule"], r["group"]): float(r["bias"]) for r in found if r["artery"] == "LAD"}
    assert bias["adjusted", ""] == pytest.approx(3 * bias["default", ""]) and bias["default", "held"] == pytest.approx(3)
    assert all(r["kappa"] == "" for r in found if r["artery"] == "LAD"), "risk is of all arteries together"


def test_missing_scans_are_listed_and_left_out(listed, tmp_path, capsys):
    """One refused, one absent, one without the second rule: the pairs that remain are counted, the exit code is 1."""
    rows = [row for row in write(tmp_path / "net") if row["scan"] not in ("b0", "a1")]
    rows.append({"scan": "b0", "status": "refused", "reason": "missing_slice"})
    rows += [scored(f"{which}{k}", 5.0, rule="gogin") for which in "ab" for k in range(2, 5) if (which, k) != ("a", 4)]
    tables.write_csv(tmp_path / "net" / "scores.csv", [row for row in rows if row["scan"] != "a0"], COLUMNS)
    assert run(listed, tmp_path / "out", tmp_path / "net") == 1
    default, gogin = (rows_of(tmp_path / "out", rule=rule, quantity="agatston", over="all")[0] for rule in ("default", "gogin"))
    assert (default["n"], default["missing"], gogin["n"], gogin["missing"]) == ("3", "2", "2", "3")
    told = capsys.readouterr().out
    for line in ("net, b0: refused: missing_slice", "net, a1: not in scores.csv", "net, a4: no row for rule gogin and CAC"):
        assert line in told
    assert len(json.loads((tmp_path / "out" / "reproducibility.json").read_text())["missing"]) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair,first\np,a\n", r"pairs.csv: expected a file with the columns .* got no second in pair, first"),
        ("", "got no pair, first, second in an empty file"),
        ("pair,first,second\np,a,\n", "line 2: expected pair, first and second to be filled, got 'p', 'a', ''"),
        ("pair,first,second\np,a,a\n", "line 2: expected two scans, got a twice"),
        ("pair,first,second\np,a,b\np,c,d\n", "line 3: expected a different name for each pair, got p again"),
        ("pair,first,second\n", "expected at least one pair, got none"),
    ],
)
def test_errors_in_the_list_of_pairs(tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        pairs.read(path)


def test_errors_in_what_was_scored(listed, tmp_path):
    net = tmp_path / "net"
    net.mkdir()
    for text, message in (
        (None, "scores.csv: expected the scores.csv that cacjax.score writes, got .*No such file"),
        ("scan,status,reason,artery,agatston\n", "got no rule, category, volume_mm3, mass_mg in scan, status, reason, artery, agatston"),
        (f"{','.join(COLUMNS)}\na0,scored,,default,CAC,many,1,,1,0\n", "line 2: expected a number in agatston, got 'many'"),
    ):
        if text is not None:
            (net / "scores.csv").write_text(text)
        with pytest.raises(SystemExit, match=message):
            run(listed, tmp_path / "out", net)
    assert not (tmp_path / "out").exists()


def test_pairs_or_a_reference_but_not_both(listed, tmp_path, capsys):
    for words in ([], ["--pairs", str(listed), "--reference", str(tmp_path)]):
        with pytest.raises(SystemExit):
            evaluate.main(["--predictions", str(tmp_path), *words])
    assert "not allowed with argument" in capsys.readouterr().err


def test_picture_has_a_row_for_each_arm(listed, tmp_path):
    write(tmp_path / "net")
    write(tmp_path / "other", SECOND, FIRST)
    for arms in (("net",), ("net", "other")):
        run(listed, tmp_path / str(len(arms)), *(tmp_path / arm for arm in arms))
    one, two = (imread(tmp_path / name / "reproducibility.png") for name in ("1", "2"))
    assert two.shape[0] > 1.5 * one.shape[0] and two.shape[1] == one.shape[1]
    assert all(np.ptp(picture[..., :3]) > 0.5 for picture in (one, two))
