"""What README says of results is what the committed results and the tables of the papers say."""

import json
import pathlib

import pytest

from cacjax.experiments import ensemble, uda

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
RACES = {  # rows of README's table of speed: what it says, and of which result, work and case
    "critic update, 16 + 16 samples": ("race_cpu", "critic update", "16 + 16 samples"),
    "generator update, 16 + 16 samples": ("race_cpu", "generator update", "16 + 16 samples"),
    "UDA block, 20 + 1 updates": ("race_cpu", "UDA block", "20 + 1 updates"),
    "whole-scan detection, CCTA 200x512x512, against dense": ("race_cpu", "whole-scan detection", "CCTA 200x512x512, against dense"),
    "ensemble step, 5 members": ("ensemble_cpu", "five members, small", "5 x 2 volumes 40 x 40 x 40, width 8"),
    "CAC-Net joint step, small": ("cacnet_cpu", "joint step, small", "1 x 16 x 96 x 96, growth 4, width 4"),
    "calcium CycleGAN step, published": ("cyclegan_cpu", "step, published", "2 x 2 slices 224 x 224, width 64"),
}
FULL = ("full method", True)  # of the paper's Table 2, with reduction of false positives


def rows(name):
    """The rows of a committed result."""
    return json.loads((ROOT / f"tools/bench/results/{name}.json").read_text())["rows"]


def row(name, **wanted):
    """The one row of a committed result with these values."""
    (found,) = (each for each in rows(name) if wanted.items() <= each.items())
    return found


def short(value, digits=2):
    """As README writes figures below one: .54"""
    return f"{value:.{digits}f}".removeprefix("0")


def cells(start):
    """Cells of the one row of README's tables whose first cell starts so."""
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_adaptation():
    published = next(column.published for column in uda.EXPERIMENTS["uda-table2"].columns if (column.title, column.reduced) == FULL)
    sensitivity, fp_mm3, f1 = published
    said = cells("UDA: domain adaptation")
    assert said[3] == f"CCTA: F1 {short(f1)}, sensitivity {short(sensitivity)}, FP {fp_mm3} mm³ a scan"
    of = lambda name: row("uda_flow", network=name, scans="ccta", fp_reduction="yes")  # noqa: E731
    full, others = of("full method"), [of(name) for name in ("source network from chest CT", "full method without L_adv", "oracle")]
    pooled = [short(each["f1_pooled"]) for each in (full, *others)]
    assert full["seeds"] == 3 and f"sensitivity {short(full['sensitivity'])}, FP {full['fp_mm3']:.1f}; " in said[4]
    told = "F1 pooled over voxels {} (source network {}, without the critic {}, trained on labelled CCTA {})".format(*pooled)
    assert told in said[4] and said[4].endswith("published form not trained")


def test_shipped_networks():
    found = {each["scans"]: each for each in rows("shipped") if each["heart"] == "found by network"}
    chest, cardiac, rtp, ccta = (found[name] for name in ("chest", "cardiac", "rtp", "ccta"))
    text, dice = " ".join(README.split()), [each[name] for each in (chest, cardiac, rtp, ccta) for name in ("dice", "dice_wide")]
    assert f"a Dice of {short(min(dice))} to {short(max(dice))}, also in patients" in text
    assert f"of {found['without']['n']} scans without a heart none is scored" in text and found["without"]["scored"] == 0
    kappas = [short(each["kappa"]) for each in (chest, cardiac, rtp, ccta)]
    assert "is {} on chest CT, {} on gated CT, {} on planning CT, and {} on CCTA".format(*kappas) in text


def test_heart():
    dice = row("heart_cpu", protocol="ccta")["dice"]
    chambers = [dice[name]["mean"] for name in ("LV cavity", "RV", "LA", "RA")]
    expected = f"chambers {short(min(chambers))} to {short(max(chambers))}, myocardium {short(dice['LV myocardium']['mean'])}"
    assert cells("heart segmentation")[4] == f"CCTA at 3 mm: {expected} (the phantoms of before 2026-11-30)"


def test_calcium_cyclegan():
    ours, at_130 = (
        row("cyclegan_parts", network=network, calcium="CT", gate=gate)
        for network, gate in (("cyclegan", "likely parts"), ("observer, from 130 HU", "no gate"))
    )
    said = cells("Calcium CycleGAN")
    published = row("cyclegan_parts", network="cyclegan", calcium="CT", gate="classifier")["published_difference"]
    assert said[3].endswith(f"{short(published)} (at 130 HU {short(at_130['published_difference'])})")
    assert said[4].startswith(f"{short(ours['difference'])} ({short(at_130['difference'])}) at size `small`, one seed; ")
    assert f"; {short(ours['sensitivity'])} of the scans with" in said[4] and ours["seeds"] == 1
    assert f"(at 130 HU {short(at_130['sensitivity'])}), {short(ours['false_positive_rate'])} of those without" in said[4]


def test_cacnet():
    ours = row("cacnet_parts", network="CAC-Net", **{"calcium of": "CAC"})
    said = cells("CAC-Net: 2D U-DenseNet")
    assert said[3] == f"F1 by volume {short(ours['published_volume_f1'], 3)}, ICC of Agatston {short(ours['published_agatston_icc'], 3)}"
    assert said[4].startswith(f"{short(ours['volume_f1'])}, {short(ours['agatston_icc'])} at size `small`, two folds of five")
    half = row("cacnet_parts", network="3D U-Net", **{"calcium of": "CAC"})
    assert f"3D half alone is better ({short(half['volume_f1'])}, {short(half['agatston_icc'])})" in said[4] and ours["n"] == 40


def test_ensemble():
    ours = row("ensemble_bright", trained_on="J1", networks="ensemble")
    whole = row("ensemble_table1", trained_on="J1 + J2 + AD", networks="ensemble")
    said = cells("five-U-Net ensemble")
    assert said[3] == f"category accuracy {short(whole['published_accuracy'], 3)}, C-index {short(whole['published_c_index'], 3)}"
    assert said[4].startswith(f"{short(ours['accuracy'])}, {short(ours['c_index'], 3)} at size `small`")
    assert (whole["published_c_index"], whole["published_accuracy"]) == ensemble.EXPERIMENTS["ensemble-table1"].columns[5].published


@pytest.mark.parametrize("said", RACES)
def test_speed(said):
    result, work, case = RACES[said]
    found = row(result, work=work, case=case)
    ratios = [f"{found[f'ratio_{other}']:.2f}x" for other in ("published", "tuned")]
    assert cells(said)[1:] == [f"{found['ours_s']:.3g} s", *ratios]


def test_components():
    found = row("labelling_cpu", case="thorax", connectivity=26)
    ours, cc3d, scipy = (found[f"{name}_ms"] for name in ("ours", "cc3d", "scipy"))
    assert cells("connected components")[1:] == [f"{ours:.1f} ms", f"cc3d / ours {cc3d / ours:.2f}x", f"scipy / ours {scipy / ours:.1f}x"]
