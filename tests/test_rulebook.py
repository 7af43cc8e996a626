"""Scoring rules of one's own: from a TOML file, as records, and what is told of one that cannot be."""

import csv

import numpy as np
import pytest

import cacjax
from cacjax import score as program
from cacjax.files import scan
from cacjax.kernels import own_rules, rules, scores
from cacjax.kernels.rules import AtVoltage, Minimum, Rule
from cacjax.report import tables
from cacjax.scoring import rulebook

SPACING = (3.0, 0.5, 0.5)
EVERY_KEY = """
[mine]
source = "our manual"
threshold_hu = 120
strict = true
connectivity = 26
minimum = {value = 2, unit = "volume_mm3", rounding = "above"}
peak = "lesion"
limits = [120, 200, 300, 400]
floor_weight = 1
thickness = "none"
whole_lesions = true
kvp = 110
by_kvp = [{kvp = 80, threshold_hu = 160}, {kvp = 100, threshold_hu = 140, limits = [140, 210, 310, 410]}]

[bare]

[as_given]
threshold_hu = "none"
"""


def written(folder, text=EVERY_KEY):
    path = folder / "rules.toml"
    path.write_text(text)
    return path


def test_every_key_of_a_file(tmp_path):
    path = written(tmp_path)
    found = rulebook.find(f"default,{path}:mine,{path}:bare,{path}:as_given")
    assert list(found) == ["default", "mine", "bare", "as_given"] and found["default"] == rules.RULES["default"]
    assert found["mine"] == Rule(
        "our manual",
        threshold_hu=120,
        strict=True,
        connectivity=26,
        minimum=Minimum(2, "volume_mm3", "above"),
        peak="lesion",
        limits=(120, 200, 300, 400),
        floor_weight=1,
        thickness="none",
        whole_lesions=True,
        kvp=110,
        by_kvp=(AtVoltage(80, 160), AtVoltage(100, 140, (140, 210, 310, 410))),
    )
    assert found["bare"] == Rule(f"{path}, [bare]") and found["as_given"].threshold_hu is None


@pytest.mark.parametrize("name", sorted(rules.RULES))
def test_a_record_gives_its_rule_back(name):
    rule = rules.RULES[name]
    assert own_rules.from_fields(tables.plain(rule), "here") == rule == own_rules.checked(rule, "here")


WRONG = {
    "threshold = 130": r"\[mine\]: there is no key 'threshold', did you mean threshold_hu; expected keys among source, threshold_hu, .*",
    'threshold_hu = "130"': r'\[mine\]: threshold_hu: expected a number of HU, or "none" .*, got \'130\'',
    "threshold_hu = nan": r"\[mine\]: threshold_hu: expected a number of HU.*, got nan",
    "strict = 1": r"\[mine\]: strict: expected true or false, got 1",
    "connectivity = 12": r"\[mine\]: connectivity: expected 4 or 8 \(in the slice\), 6, 18 or 26 \(in 3D\), got 12",
    "minimum = 3": r"\[mine\]: minimum: expected keys among value, unit, rounding, got 3",
    "minimum = {size = 3}": r"\[mine\]: minimum: there is no key 'size'; expected keys among value, unit, rounding",
    "minimum = {value = -1}": r"\[mine\]: minimum.value: expected a number of 0 or more, got -1",
    'minimum = {value = 1, unit = "mm2"}': r"\[mine\]: minimum.unit: expected one of px, area_mm2, volume_mm3, got 'mm2'",
    'minimum = {value = 1, rounding = "up"}': r"\[mine\]: minimum.rounding: expected one of ceil, round, above, got 'up'",
    'peak = "voxel"': r"\[mine\]: peak: expected one of slice, lesion, got 'voxel'",
    "limits = [130, 200, 300]": r"\[mine\]: limits: expected four numbers of HU that ascend, .*, got \(130, 200, 300\)",
    "limits = [130, 300, 200, 400]": r"\[mine\]: limits: expected four numbers of HU that ascend",
    "floor_weight = 5": r"\[mine\]: floor_weight: expected a whole number from 0 to 4, got 5",
    'thickness = "3 mm"': r"\[mine\]: thickness: expected one of increment, tag, increment_rounded, none, got '3 mm'",
    "by_kvp = {kvp = 100, threshold_hu = 147}": r"\[mine\]: by_kvp: expected a list of tables \(kvp, threshold_hu, limits\)",
    "by_kvp = [{kvp = 100}]": r"\[mine\]: by_kvp: expected kvp and threshold_hu, got no threshold_hu in \{'kvp': 100\}",
    "by_kvp = [{kvp = 0, threshold_hu = 147}]": r"\[mine\]: by_kvp.kvp: expected a tube voltage in kV above 0, got 0",
    "source = 3": r"\[mine\]: source: expected a text, got 3",
    "strict true": r": expected TOML with a table for each rule, got .*line 2",
}


@pytest.mark.parametrize("line", list(WRONG))
def test_an_error_names_file_key_found_and_expected(tmp_path, line):
    path = written(tmp_path, f"[mine]\n{line}\n")
    with pytest.raises(ValueError, match=f"^{path}.*{WRONG[line]}"):
        rulebook.find(f"{path}:mine")


def test_names_that_cannot_be(tmp_path):
    path = written(tmp_path, "[mine]\n[default]\nstrict = true\n")
    own = Rule("mine", connectivity=4)
    for rule, told in (
        ("agatsten", r"rule must be one of default, .*, or FILE.toml:NAME for one of your own, got 'agatsten'"),
        (f"{path}", r"or FILE.toml:NAME"),
        (f"{path}:yours", r"rules.toml: expected the name of one of its tables \(mine, default\), got 'yours'"),
        (f"{tmp_path / 'none.toml'}:mine", r"none.toml: expected a TOML file of scoring rules, got No such file"),
        (f"{path}:default", r"rule 'default' is the name of another rule; expected a name of its own"),
        ({"gogin": own}, r"rule 'gogin' is the name of another rule"),
        ([own, Rule("another")], r"rule 'custom' is the name of another rule"),
        ({"a": "default"}, r"rule 'a': expected a cacjax.kernels.rules.Rule, got 'default'"),
        (Rule("mine", minimum=3), r"rule 'custom': minimum: expected a Minimum \(value, unit, rounding\), got 3"),
        (Rule("mine", by_kvp=((100, 147),)), r"rule 'custom': by_kvp: expected a list of tables .* tuple of AtVoltage"),
    ):
        with pytest.raises(ValueError, match=told):
            rulebook.find(rule)
    assert rulebook.find(own) == {"custom": own} and rulebook.find({"a": own, "b": own}) == {"a": own, "b": own}


def test_more_than_a_minimum():
    """> 1.5 mm³ is three voxels of 0.75 mm³, >= 1.5 mm³ two."""
    above = Rule("", minimum=Minimum(1.5, "volume_mm3", "above"))
    assert rules.min_voxels(above, SPACING) == 3 and rules.min_voxels(above, (3.0, 0.4, 0.4)) == 4
    assert rules.min_voxels(Rule("", minimum=Minimum(1.5, "volume_mm3")), SPACING) == 2


def test_strict_130_by_name():
    """130 HU does not count, 130.5 does; four pixels that join by corners are one component of 1 mm²; three pixels are too few."""
    hu = np.full((2, 20, 20), 50, np.float32)
    hu[0, 2:4, 2] = hu[0, 4, 3] = hu[0, 5, 4] = 130.5
    hu[0, 2:6, 10:12] = 130
    hu[1, 10, 2:5] = 250
    found = scores.score(hu > 0, hu, SPACING, "strict_130")
    assert (found.agatston[0], found.volume_mm3[0]) == (1.0, 3.0)


def test_a_rule_of_ones_own_scores(tmp_path, monkeypatch):
    """By the command line and from Python; a changed file is another setting, so that --resume scores again."""
    hu = np.full((6, 40, 48), 40, np.float32)
    hu[2, 10:14, 20:24] = 250
    hu[4, 30:32, 8:10] = 250
    scan.write_image(hu, np.diag([*SPACING, 1.0])[[2, 1, 0, 3]], tmp_path / "p.nii.gz")
    scan.write_image(np.ones(hu.shape), np.diag([*SPACING, 1.0])[[2, 1, 0, 3]], tmp_path / "r.nii.gz", np.uint8)
    own = Rule("five pixels", minimum=Minimum(5))
    (row,) = cacjax.score(tmp_path / "p.nii.gz", regions=tmp_path / "r.nii.gz", rule=own).rows
    assert (row["rule"], row["agatston"], row["threshold_hu"]) == ("custom", 8.0, 130.0)

    def run(text):
        path = written(tmp_path, text)
        options = ["--regions", str(tmp_path / "r.nii.gz"), "--out", str(tmp_path / "out"), "--rule", f"{path}:mine", "--resume"]
        assert program.main([str(tmp_path / "p.nii.gz"), *options]) == 0
        with open(tmp_path / "out" / "scores.csv") as file:
            return [(row["rule"], row["agatston"]) for row in csv.DictReader(file)]

    assert run("[mine]\nminimum = {value = 5}\n") == [("mine", "8.0")]
    assert run("[mine]\nminimum = {value = 4}\n") == [("mine", "10.0")]
    with pytest.raises(SystemExit):
        run("[mine]\nminimum = {value = '4'}\n")
