"""Do the tests notice? `python tools/mutate.py [WORD ...]` puts each fault of tools/faults.py into a copy of the tree, one at a time, and
runs the test that must then fail; WORDs choose the faults that have one of them in their description.

Shows what became of every fault. Exit code 0 if all were noticed; 1 if a test passed in spite of its fault, or could not even be collected;
2 if the tests do not pass without any fault.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from tools.faults import FAULTS

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAYS = {0: "NOT NOTICED", 1: "noticed"}


def main(words, faults=FAULTS, root=ROOT) -> int:
    """Check the faults that have one of the words in their description; returns the exit code."""
    chosen = [fault for fault in faults if not words or any(word in fault.what for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        tree = copy(root, pathlib.Path(folder) / "tree")
        print(f"{len(chosen)} faults; first the tests without any ...", flush=True)
        if run(tree, sorted({fault.test for fault in chosen})):
            print("error: these tests must pass before a fault can show")
            return 2
        began, codes = time.perf_counter(), []
        for number, fault in enumerate(chosen, 1):
            codes.append(check(tree, fault))
            spent = time.perf_counter() - began
            said = SAYS.get(codes[-1], f"BROKEN, pytest ended with {codes[-1]}")
            left = spent / number * (len(chosen) - number) / 60
            print(f"{number}/{len(chosen)} {said}: {fault.what} ({fault.test}); {left:.0f} min left", flush=True)
    print(f"{codes.count(1)} of {len(chosen)} faults noticed, {spent / len(chosen):.0f} s each")
    return int(set(codes) != {1})


def copy(root, tree):
    """Copy what git knows of a checkout, or does not ignore, and return where it lies."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, tree / name)
    return tree


def check(tree, fault) -> int:
    """Exit code of the fault's test while the fault is in the tree."""
    path = tree / fault.file
    text = path.read_text()
    path.write_text(fault.into(text))
    try:
        return run(tree, [fault.test])
    finally:
        path.write_text(text)


def run(tree, tests) -> int:
    """Exit code of pytest on tests of a tree. No bytecode: it would outlive a fault that is put in and taken out within a second. No
    plugins: none is needed, and they take a second."""
    here = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    done = subprocess.run([sys.executable, *words], cwd=tree, env=os.environ | here, capture_output=True, text=True)
    if done.returncode > 1:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
