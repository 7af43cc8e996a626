"""What tools/bench/race.py makes of measured seconds, and the README's table of it."""

import importlib
import pathlib
import time

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[1] / "tools/bench"
MATMUL_S, ADD_S = 0.1, 0.05


@pytest.fixture
def race(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("race")


def test_row_by_hand(race):
    """Ours does the work 4 times a call, PyTorch half of it; what follows on the host is added to PyTorch alone."""
    case = race.Case("w", "c", None, None, None, times=4, flops=race.MATMUL_FLOPS, parts=0.5)
    taken = {"ours": [4.0, 8.0, 80.0], "published": [8.0, 6.0, 7.0], "after": [1.0, 2.0, 3.0], "matmul": [MATMUL_S] * 3, "add": [ADD_S] * 3}
    row = race.row(case, taken, 3)
    assert row["ours_s"] == 2.0 and row["published_s"] == 7.0 / 4 / 0.5 + 2.0 and row["tuned_s"] is None
    assert row["ratio_published"] == 5.5 / 2.0 and row["ratio_tuned"] is None
    assert row["roofline_share"] == pytest.approx(MATMUL_S / 2.0)
    assert row["ceiling"]["gb_s"] == pytest.approx(race.ADD_BYTES / ADD_S / 1e9)
    assert row["spread"]["ours"] == [1.0, 20.0] and row["spread"]["published"] == [3.0, 4.0]


@pytest.mark.parametrize("own, calls, rounds", [(None, 4, 3), (1, 1, 1)])
def test_contenders_take_turns(race, monkeypatch, own, calls, rounds):
    """Once to warm up, then once a round; a case with rounds of its own is warm already."""
    monkeypatch.setattr(race, "ceiling_works", lambda: {"matmul": lambda: time.sleep(1e-3), "add": lambda: time.sleep(1e-3)})
    order = []
    works = [lambda name=name: order.append(name) or time.sleep(1e-3) for name in ("ours", "published", "tuned")]
    row = race.measure(race.Case("w", "c", *works, rounds=own), rounds=3)
    assert order == ["ours", "published", "tuned"] * calls and row["rounds"] == rounds


def test_table_goes_between_its_markers(race, tmp_path):
    table = importlib.import_module("table")
    row = {"work": "w", "case": "c", "ours_s": 0.5, "ratio_published": 2.0, "ratio_tuned": None, "compile_s": 3.0, "roofline_share": 0.25}
    result = {"device": "d", "versions": {"jax": "1"}, "date": "2026-01-01", "command": "python run.py", "rows": [row]}
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.put(readme, table.table([result]))
    text = readme.read_text()
    assert "| w | c | 500 ms | 2.00x | - | 3 s | 25 % |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the markers"):
        table.put(readme, "")
