"""The house rules: who imports whom, file length, docstrings, keyword-only options, top level."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = sorted((ROOT / "cacjax").rglob("*.py"))
EVERYTHING_BELOW = {"classes", "task", "optimise", "files", "models", "kernels", "inference", "data", "phantom"}
MAY_IMPORT = {  # a room and the rooms that it may import; what is missing here is an entry point, which nobody imports
    **{room: set() for room in ("backend", "classes", "task", "files", "models")},
    "optimise": {"task"},
    "kernels": {"classes"},
    "phantom": {"files"},
    "inference": {"classes", "kernels", "models", "task"},
    "data": {"classes", "kernels", "files", "phantom"},
    "report": {"classes", "files"},
    "tasks": EVERYTHING_BELOW,
    "scoring": {"classes", "kernels", "files", "report", "task"},
    "evaluation": {"classes", "kernels", "files", "report"},
    "training": {"data", "files", "task"},
    "experiments": {"classes", "evaluation", "files", "kernels", "phantom", "report"},
}
ROOMS = MAY_IMPORT.keys() | {"train", "score", "evaluate"}
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


def room(module):
    """The room of a module's dotted name: a folder of cacjax, or a file beside the folders."""
    return module.split(".")[1]


def rooms_of(path):
    """The rooms of cacjax that a file imports from, its own left out."""
    own = path.relative_to(ROOT / "cacjax").parts[0].removesuffix(".py")
    return {room(m) for m in imported(path) if m.startswith("cacjax.") and room(m) in ROOMS} - {own}


def test_rooms_are_those_of_the_map():
    here = {path.parent.name for path in (ROOT / "cacjax").glob("*/__init__.py")}
    assert here == {name for name in MAY_IMPORT if (ROOT / "cacjax" / name).is_dir()}
    files = {path.stem for path in (ROOT / "cacjax").glob("*.py")}
    assert files <= {"__init__", "backend", "train", "score", "evaluate", "task", "optimise", "classes"}
    assert files | here == ROOMS | {"__init__"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_who_may_import_whom(path):
    first = path.relative_to(ROOT / "cacjax").parts[0].removesuffix(".py")
    if first == "__init__":
        assert rooms_of(path) <= {"backend", "score"}
    else:
        assert rooms_of(path) <= MAY_IMPORT.get(first, ROOMS), name(path)


def test_no_circle_of_imports():
    """Whatever a module imports, and what that imports, never comes back to it; imports inside of functions count."""
    modules = {name(p).removesuffix(".py").replace("/", "."): p for p in SOURCES if p.stem != "__init__"}
    needs = {module: {m for m in imported(path) if m in modules} - {module} for module, path in modules.items()}
    while leaves := [module for module, needed in needs.items() if not needed & needs.keys()]:
        for module in leaves:
            del needs[module]
    assert not needs, f"a circle among {sorted(needs)}"


def test_libraries_stay_in_their_rooms():
    kernels = {m.split(".")[0] for path in SOURCES if path.parent.name == "kernels" for m in imported(path)} - set(sys.stdlib_module_names)
    assert kernels <= {"jax", "jaxtyping", "numpy", "scipy", "cacjax"}
    on_host = {"cacjax/kernels/reference.py"}  # of masks as they are read, in threads that must not compile
    assert {user for user in users_of("scipy") if "/kernels/" in user} == on_host
    assert {user.split("/")[1] for user in users_of("flax")} <= {"models"}
    assert {user.split("/")[1].removesuffix(".py") for user in users_of("optax")} <= {"optimise", "tasks"}
    assert {user.split("/")[1].removesuffix(".py") for user in users_of("orbax")} <= {"train", "training"}
    assert {user.split("/")[1] for user in users_of("SimpleITK") | users_of("pydicom")} <= {"files"}
    assert not users_of("tensorflow") and not users_of("torch")


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
