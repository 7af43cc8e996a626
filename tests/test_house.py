"""The house rules: who imports whom, file length, docstrings, keyword-only options, top level."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted((ROOT / "cacjax").rglob("*.py"))
ENTRY_POINTS = ("train", "score", "evaluate", "experiments")
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "cacjax", "configs", "tests", "tools"}


def name(path):
    return path.relative_to(ROOT).as_posix()


def imported(path):
    """Every module that a file names in an import, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def users_of(package):
    return {name(path) for path in SOURCES if any(m == package or m.startswith(package + ".") for m in imported(path))}


def test_top_level_is_as_the_house_draws_it():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {entry for entry in top if not entry.startswith(".")} <= TOP_LEVEL


def test_kernels_import_jax_and_each_other_only():
    for path in SOURCES:
        if path.parent.name == "kernels":
            roots = {m.split(".")[0] for m in imported(path)} - set(sys.stdlib_module_names)
            assert roots <= {"jax", "numpy", "cacjax"}, name(path)
            assert {m.split(".")[1] for m in imported(path) if m.startswith("cacjax.")} <= {"kernels"}, name(path)


def test_libraries_stay_in_their_rooms():
    assert all(user.startswith("cacjax/models/") or user == "cacjax/task.py" for user in users_of("flax"))
    assert users_of("orbax") <= {f"cacjax/{entry}.py" for entry in ENTRY_POINTS}
    readers = users_of("SimpleITK") | users_of("pydicom")
    assert readers <= {"cacjax/files/scan.py", "cacjax/files/dicom.py", "cacjax/files/volume.py", "cacjax/report/pictures.py"}
    assert not users_of("tensorflow") and not users_of("torch")


def test_entry_points_are_imported_by_nobody_but_the_package_and_each_other():
    for path in SOURCES:
        if path.stem in (*ENTRY_POINTS, "__init__", "__main__", "run"):
            continue
        assert not imported(path) & {f"cacjax.{entry}" for entry in ENTRY_POINTS}, name(path)


def test_files_are_one_room():
    for path in [*SOURCES, *(ROOT / "tools").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 320, f"{name(path)} is more than one room"


def test_no_room_without_a_name():
    for path in SOURCES:
        assert path.stem not in ("utils", "util", "common", "base", "core", "helpers"), name(path)
        assert len(path.relative_to(ROOT).parts) <= 3, name(path)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.read_text().strip()], ids=name)
def test_public_things_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a file opens with one line that says what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_options_are_keyword_only():
    for path in SOURCES:
        if path.parent.name != "kernels":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert len(node.args.defaults) <= 1, f"{name(path)}: options of {node.name} must be keyword-only"


def test_importing_starts_no_backend_and_no_tensorflow():
    modules = [name(p).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for p in SOURCES if p.stem != "__main__"]
    program = "import importlib, sys\n" + "".join(f"importlib.import_module({m!r})\n" for m in modules)
    program += "from jax._src import xla_bridge\nassert not xla_bridge._backends, 'a backend was started'\n"
    program += "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
