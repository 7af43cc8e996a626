"""The table of faults is of this tree, and the program that puts them in tells those that no test notices."""

import pathlib
import subprocess

import pytest

from tools import mutate
from tools.faults import FAULTS, Fault

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_fits_the_tree_and_names_a_test(fault):
    text = (ROOT / fault.file).read_text()
    assert fault.into(text) != text  # ValueError where the old text does not stand there once
    compile(fault.into(text), fault.file, "exec")
    file, _, name = fault.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / file).read_text()


def test_every_fault_has_a_name_of_its_own():
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)


def test_what_becomes_of_faults(tmp_path, capsys):
    """One that a test notices, one that none does, and one that lets no test begin."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "one.py").write_text("import math\n\ndef f():\n    return 1 + 0\n")
    (tmp_path / "tests" / "test_one.py").write_text("import one\n\ndef test_f():\n    assert one.f() == 1\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    pairs = {"good": ("return 1", "return 2"), "weak": ("+ 0", "- 0"), "broken": ("import math", "import maths")}
    faults = [Fault("one.py", what, *pair, "test_one.py::test_f") for what, pair in pairs.items()]
    assert mutate.main(["oo", "wea", "bro"], faults, tmp_path) == 1
    told = capsys.readouterr().out
    for line in ("1/3 noticed: good", "2/3 NOT NOTICED: weak", "3/3 BROKEN, pytest ended with", "1 of 3 faults noticed"):
        assert line in told
    assert "return 1 + 0" in (tmp_path / "one.py").read_text()
    (tmp_path / "tests" / "test_one.py").write_text("def test_f():\n    assert False\n")
    assert mutate.main(["good"], faults, tmp_path) == 2
