"""Who can reach what: import contracts, fresh interpreters, the bundle, the wheel."""

import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Set as AbstractSet
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_MODULES = 14  # of a folder of the programs, __init__ apart
SECRET = ("fedpp.keys", "fedpp.imaging", "fedpp.ingest.ingestion", "fedpp.survey", "imagecodecs", "pydicom")


@cache
def loaded_by(module: str) -> frozenset[str]:
    """Return what a fresh interpreter has loaded after importing a module."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return frozenset(done.stdout.split())


def reaches(modules: AbstractSet[str], forbidden: tuple[str, ...]) -> set[str]:
    return {m for m in modules if any(m == f or m.startswith(f"{f}.") for f in forbidden)}


@pytest.mark.parametrize(
    "module",
    [
        "coordinator.server.app",
        "coordinator.server.strategy",
        "sites.client.app",
        "fedpp.learning.encrypted_training",
        "fedpp.aggregation.pair_masks",
        "fedpp.aggregation.run_stage",
        "fedpp.vault_api.vault_client",
    ],
)
def test_federated_code_loads_no_key_code(module: str):
    """Importing an app, and whatever that drags in, loads nothing of the secret zone."""
    modules = loaded_by(module)
    assert module in modules
    assert reaches(modules, SECRET) == set()


def test_the_test_can_see_key_code():
    """The check above finds key code where it is loaded."""
    assert "fedpp.keys.key_domain" in reaches(loaded_by("fedpp.keys.key_domain"), SECRET)


def test_the_coordinator_loads_no_evaluation_key_no_keystream_and_no_tensorflow():
    """The coordinator's code loads neither a key nor masks nor TensorFlow."""
    forbidden = ("fedpp.cipher.evaluation_key", "fedpp.aggregation.pair_masks", "tensorflow", "keras")
    shared = ("fedpp.aggregation.linear_check", "fedpp.aggregation.round_vector", "fedpp.aggregation.run_stage")
    for module in ("coordinator.server.app", "coordinator.server.strategy", *shared):
        assert reaches(loaded_by(module), forbidden) == set()


def test_the_package_imports_nothing():
    """fedpp/__init__.py loads no other module of fedpp."""
    assert reaches(loaded_by("fedpp"), ("fedpp",)) == {"fedpp"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout's own files, without what was built or left there."""
    copy = tmp_path_factory.mktemp("bundle") / "fedpp"
    copy.mkdir()
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def bundle(copy: Path) -> set[str]:
    """Return the names in a Flower bundle of the checkout."""
    flwr = Path(sys.executable).parent / "flwr"
    subprocess.run([str(flwr), "build", "--app", str(copy)], cwd=copy, check=True, capture_output=True)
    (fab,) = copy.glob("*.fab")
    return set(zipfile.ZipFile(fab).namelist())


def test_the_bundle_holds_what_the_apps_load_and_nothing_else(bundle: set[str]):
    """Whatever module is new stays out of the bundle until an app needs it: so key code cannot slip in."""
    apps = ("coordinator.server.app", "sites.client.app", "fedpp.learning.encrypted_training", "fedpp.aggregation.ring")
    needed = set().union(*(loaded_by(app) for app in apps))
    files = {
        path.relative_to(ROOT).as_posix()
        for name in needed
        if name.split(".")[0] in {"fedpp", "sites", "coordinator"}
        for path in (ROOT / f"{name.replace('.', '/')}.py", ROOT / name.replace(".", "/") / "__init__.py")
        if path.is_file()
    }
    assert {name for name in bundle if name.endswith(".py")} == files
    assert "fedpp/aggregation/ring.py" in bundle
    assert "fedpp/aggregation/pair_masks.py" not in bundle
    assert reaches({name.removesuffix(".py").replace("/", ".") for name in bundle}, SECRET) == set()


def test_the_wheel_holds_the_library_and_the_site(copy: Path, tmp_path: Path):
    """A built wheel installs fedpp only, with the site's command and without coordinator and simulations."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fedpp"}
    packages = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in (ROOT / "fedpp").rglob("__init__.py")}
    own = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in (ROOT / "sites").rglob("__init__.py")}
    assert packages | {f"fedpp.{name}" for name in own} == set(PROJECT["tool"]["setuptools"]["packages"])
    assert "fedpp/sites/vault/vault_server.py" in names
    assert "fedpp/keys/key_domain.py" in names
    templates = {str(file.relative_to(ROOT)) for file in (ROOT / "fedpp").rglob("*.html.j2")}
    assert templates == {name for name in names if name.endswith(".j2")} != set()
    (points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "fedpp-site = fedpp.sites.__main__:main" in zipfile.ZipFile(wheel).read(points).decode()


def test_import_contracts_hold():
    """The layers and prohibitions in pyproject.toml are kept."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_folders_of_the_programs_are_small():
    """A folder of `sites` or `coordinator` has at most 14 modules, and no two modules of the project share a name."""
    modules = [path for top in ("fedpp", "sites", "coordinator", "simulations") for path in (ROOT / top).rglob("*.py")]
    named = [path for path in modules if path.stem not in {"__init__", "__main__", "app", "sitecustomize"}]
    folders = Counter(path.parent for path in named if path.relative_to(ROOT).parts[0] in {"sites", "coordinator"})
    assert {folder: count for folder, count in folders.items() if count > MAX_MODULES} == {}
    assert [name for name, count in Counter(path.name for path in named).items() if count > 1] == []
