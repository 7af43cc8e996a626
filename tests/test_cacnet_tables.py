"""Zhang 2018, Tables 1, 2 and 4: which scans of which folds a table holds, and what its figures are."""

import json
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from cacjax.experiments import cacnet, run

FORMS = ("unet3d", "udensenet", "cacnet")


def scored(voxels, lesions, agatston, right=0):
    return {"voxels": voxels, "lesions": lesions, "agatston": agatston, "mm3": agatston, "right": right}


def test_figures_are_pooled_over_scans():
    found = cacnet.figures([scored((8, 2, 0), (1, 1, 0), (10, 12), right=6), scored((0, 2, 4), (0, 0, 3), (40, 30))])
    assert found["volume_sensitivity"] == pytest.approx(8 / 12, abs=1e-5) and found["volume_ppv"] == pytest.approx(8 / 12, abs=1e-5)
    assert found["number_f1"] == pytest.approx(2 / 6, abs=1e-5) and found["right_artery"] == 6 / 8
    assert found["agatston_icc"] == pytest.approx(found["volume_icc"]) and 0.8 < found["agatston_icc"] < 1


def test_a_row_is_compared_with_the_whole_on_the_same_scans():
    experiment = cacnet.EXPERIMENTS["cacnet-parts"]
    good, bad = ({f"s{i}": scored((hits, 0, 10 - hits), (1, 0, 0), (i, i)) for i in range(6)} for hits in (9, 5))
    columns = [good if column.form == "unet3d" else bad for column in experiment.columns]
    rows = cacnet.summary(experiment, [{"columns": columns}])
    assert [row["n"] for row in rows] == [6] * len(rows)
    unet = next(row for row in rows if row["network"] == "3D U-Net")
    assert unet["less"] == pytest.approx(18 / 19 - 10 / 15, abs=1e-4) and unet["less_low"] > 0.2
    assert "less" not in next(row for row in rows if (row["network"], row["calcium of"]) == ("CAC-Net", "CAC"))
    assert cacnet.shown(unet)["F1 less"].startswith("+0.28")


def test_folds_that_were_done_before_join(tmp_path, monkeypatch):
    """Of five folds the second was scored elsewhere, the first is now: the networks' rows and the control hold the scans of both."""
    files = {name: pathlib.Path(name) for name in ("scan", "mask", "heart")}
    rows = [SimpleNamespace(name=f"s{i}", cells={"split": f"fold{i % 5}"}, **files) for i in range(10)]
    monkeypatch.setattr(cacnet.manifest, "read", lambda folder: rows)
    monkeypatch.setattr(cacnet.manifest, "write", lambda *given, **options: None)
    monkeypatch.setattr(cacnet, "controls", lambda rows: {row.name: scored((1, 1, 0), (1, 1, 0), (2, 2)) for row in rows})

    def score(fold):
        for form in FORMS:
            out = tmp_path / "scores" / form / fold
            out.mkdir(parents=True)
            for row in rows:
                if row.cells["split"] == fold:
                    (out / f"{row.name}.json").write_text("{}")

    def command(title, words, log):
        del words, log
        if title.startswith("score"):
            score(title.split()[-1])
            return
        form, fold = title.removeprefix("evaluate ").split(", ")
        counts = {"voxels": {"tp": 1, "fp": 0, "fn": 0}, "lesions": {"tp": 1, "fp": 0, "fn": 0}}
        own = dict.fromkeys(("reference_agatston", "found_agatston", "reference_mm3", "found_mm3"), 1.0) | {
            "counts": counts,
            "stage": "final",
        }
        scans = [
            own | {"scan": row.name, "artery": artery}
            for row in rows
            if row.cells["split"] == fold
            for artery in ("CAC", "LAD", "LCX", "RCA")
        ]
        path = tmp_path / "evaluation" / form / fold / "evaluation.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"scans": scans}))

    monkeypatch.setattr(cacnet.commands, "run", command)
    score("fold1")
    experiment = cacnet.of_fold(cacnet.EXPERIMENTS["cacnet-parts"], 0)
    assert set(experiment.networks) == {f"{form}/fold0" for form in FORMS}
    cacnet.test(experiment, None, tmp_path, tmp_path, 10)
    measured = [cacnet.measure(column, tmp_path) for column in experiment.columns]
    for column, found in zip(experiment.columns, measured):
        assert sorted(found) == ["s0", "s1", "s5", "s6"], column
    assert np.sum([each["right"] for each in measured[0].values()]) == 12  # of three arteries in four scans
    assert not cacnet.measure(experiment.columns[3], tmp_path)["s0"]["right"]


def test_a_fold_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.parse(["cacnet-parts", "--out", "x", "--size", "small", "--fold", "5"])
    assert "expected a fold from 0 to 4, got 5" in capsys.readouterr().err
