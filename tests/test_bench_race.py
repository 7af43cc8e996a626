"""The bench: what it makes of measured seconds, the rows that it writes, what it refuses, and the pages of its committed results."""

import importlib
import json
import pathlib
import sys
import time
import types

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[1] / "tools/bench"
MATMUL_S, ADD_S = 0.1, 0.05


@pytest.fixture
def bench(monkeypatch):
    """A module of tools/bench by its name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def test_figures_by_hand(bench):
    """Ours does the work 4 times a call, PyTorch half of it; what follows on the host is added to PyTorch alone."""
    race = bench("race")
    case = race.Case("w", "c", None, None, None, times=4, flops=race.MATMUL_FLOPS, parts=0.5)
    taken = {"ours": [4.0, 8.0, 80.0], "published": [8.0, 6.0, 7.0], "after": [1.0, 2.0, 3.0], "matmul": [MATMUL_S] * 3, "add": [ADD_S] * 3}
    row = race.figures(case, taken, 3)
    assert row["ours_s"] == 2.0 and row["published_s"] == 7.0 / 4 / 0.5 + 2.0 and row["tuned_s"] is None
    assert row["ratio_published"] == 5.5 / 2.0 and row["ratio_tuned"] is None
    assert row["roofline_share"] == pytest.approx(MATMUL_S / 2.0)
    assert row["ceiling"]["gb_s"] == pytest.approx(race.ADD_BYTES / ADD_S / 1e9)
    assert row["spread"]["ours"] == [1.0, 20.0] and row["spread"]["published"] == [3.0, 4.0]


@pytest.mark.parametrize("own, calls, rounds", [(None, 4, 3), (1, 1, 1)])
def test_contenders_take_turns(bench, monkeypatch, own, calls, rounds):
    """Once to warm up, then once a round; a case with rounds of its own is warm already."""
    race = bench("race")
    monkeypatch.setattr(race, "ceiling_works", lambda: {"matmul": lambda: time.sleep(1e-3), "add": lambda: time.sleep(1e-3)})
    order = []
    works = [lambda name=name: order.append(name) or time.sleep(1e-3) for name in ("ours", "published", "tuned")]
    row = race.Case("w", "c", *works, rounds=own).measure(3)
    assert order == ["ours", "published", "tuned"] * calls and row["rounds"] == rounds


def test_a_second_call_does_what_is_missing(bench, monkeypatch, tmp_path):
    """Of the same machine and versions; figures of others are never mixed."""
    run, race, out = bench("run"), bench("race"), tmp_path / "r.json"
    monkeypatch.setitem(run.SYSTEMS, "uda", ("numpy",))
    monkeypatch.setattr(race.Case, "measure", lambda case, rounds: {"ours_s": float(rounds)})
    made = types.SimpleNamespace(cases=lambda options: [race.Case(work, "c", None, None, None) for work in ("a", "b", "other")])
    monkeypatch.setitem(sys.modules, "uda_cases", made)
    words = ["--system", "uda", "--out", str(out), "--rounds"]
    run.main([*words, "1", "--only", "a"])
    run.main([*words, "2"])
    result = json.loads(out.read_text())
    assert {"device", "versions", "date", "command"} < set(result) and len(result["rows"][0]["load"]) == 3
    assert [(row["work"], row["ours_s"]) for row in result["rows"]] == [("a", 1), ("b", 2), ("other", 2)]
    out.write_text(json.dumps(result | {"versions": {}}))
    with pytest.raises(SystemExit, match="write to another file"):
        run.main([*words, "1"])
    with pytest.raises(SystemExit):
        run.main(["--system", "uda", "heart", "--out", str(out)])


def test_labelling_measures_the_documented_columns(bench):
    pytest.importorskip("cc3d")
    cases = bench("labelling_cases")
    row = cases.Case("blobs", 26, True).measure(1)
    assert set(cases.COLUMNS) < set(row) and row["by_slice"] and row["components"] > 0
    assert all(row[name] > 0 for name in ("ours_ms", "dense_ms", "cc3d_ms", "scipy_ms", "table_ms", "cc3d_table_ms"))


def test_pages_are_those_of_the_committed_results(bench):
    table = bench("table")
    for name, text in table.pages(table.read(table.RESULTS)).items():
        assert (table.PAGES / name).read_text() == text, f"{name} is not what python tools/bench/table.py writes"


def test_tables_by_hand(bench):
    table = bench("table")
    row = {"work": "w", "case": "c", "ours_s": 0.5, "ratio_published": 2.0, "ratio_tuned": None, "compile_s": 3.0, "roofline_share": 0.25}
    assert table.race([row]).splitlines()[2] == "| w | c | 500 ms | 2.00x | - | 3 s | 25 % |"
    row = {"case": "m", "connectivity": 8, "ours_ms": 2.0, "cc3d_ms": 3.0, "scipy_ms": 8.0, "table_ms": 4.0, "cc3d_table_ms": 1.0}
    assert table.labelling([row]).splitlines()[2] == "| m | 8 | 2.0 | 1.50x | 4.0x | 4.0 | 0.25x |"
    row = {"work": "grow", "shape": "80x208x208"} | dict(zip(("lines", "trace_s", "compile_s", "warm_ms"), (10, 0.5, 2.0, 3.0)))
    row |= {f"before_{name}": 2 * row[name] for name in ("lines", "trace_s", "compile_s", "warm_ms")}
    assert bench("compile_cases").shown(row) == ("grow", "80x208x208", "10 (20)", "0.50 (1.00)", "2.0 (4.0)", "3.0 (6.0)")
