"""What wheel and sdist hold, what the links are, and what an import costs."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT, require

SPOKES = ["sensitivity", "solvers", "hwmodels"]

pytestmark = pytest.mark.xdist_group("packaging")  # one worker builds, once


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="session")
def tree() -> list[PurePosixPath]:
    require("git", shutil.which("git") and (ROOT / ".git").exists(), "no checkout to compare with")
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return [PurePosixPath(name) for name in listed if name and os.path.lexists(ROOT / name)]


@pytest.fixture(scope="session")
def sources(tree: list[PurePosixPath]) -> set[str]:
    """The files of the four folders, the links left out."""
    folders = {"mpsearch", *SPOKES}
    return {
        str(name)
        for name in tree
        if name.parts[0] in folders and not (ROOT / name).is_symlink() and len(name.parts) > 1
    }


@pytest.fixture(scope="session")
def built(tree: list[PurePosixPath], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist made from a copy of the tree, and the wheel made from that sdist."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in tree:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_the_wheel_holds_every_file_of_the_four_folders_and_nothing_else(
    wheel: Path, sources: set[str]
) -> None:
    with zipfile.ZipFile(wheel) as opened:
        packed = {name for name in opened.namelist() if ".dist-info/" not in name}
    packed = {name for name in packed if not name.startswith("mpsearch/kernels/_packed.")}  # built
    wanted = {f"mpsearch/{name}" if name.split("/")[0] in SPOKES else name for name in sources}
    assert wanted - packed == set(), "packages or package-data in pyproject.toml lack these"
    assert packed - wanted == set()


def test_the_sdist_holds_the_four_folders_and_what_builds_them(
    built: Path, sources: set[str]
) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        packed = {m.name.split("/", 1)[1] for m in opened.getmembers() if m.isfile()}
    assert sources - packed == set()
    others = {name for name in packed - sources if not name.startswith("mpsearch.egg-info/")}
    assert others == {
        *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "PKG-INFO"),
        *("pyproject.toml", "setup.cfg", "setup.py"),
    }


def test_the_wheel_carries_the_two_trained_networks_and_the_schemas(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        networks = [i for i in opened.infolist() if i.filename.endswith(".safetensors")]
    assert len(networks) == 2
    assert sum(i.file_size for i in networks) <= 3_000_000
    for kind in ("allocation", "frontier", "problem", "table"):
        assert any(re.fullmatch(rf"mpsearch/schemas/{kind}\S*\.json", name) for name in names)
    assert "mpsearch/py.typed" in names


@pytest.mark.parametrize("spoke", SPOKES)
def test_a_link_is_a_link_in_git_and_stays_inside(spoke: str, tree: list[PurePosixPath]) -> None:
    link = f"mpsearch/{spoke}"
    assert PurePosixPath(link) in tree
    assert git("ls-files", "--stage", link).startswith("120000 ")
    assert str((ROOT / link).readlink()) == f"../{spoke}"


@pytest.mark.parametrize("spoke", SPOKES)
def test_a_source_folder_is_no_package_of_its_own(spoke: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {spoke}"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert f"'{spoke}' is the source of 'mpsearch.{spoke}': import it by that name" in done.stderr


@pytest.mark.parametrize("spoke", SPOKES)
def test_a_spoke_loads_its_members_by_name(spoke: str) -> None:
    code = (
        f"import sys, mpsearch.{spoke} as spoke; assert 'torch' not in sys.modules;"
        "members = [getattr(spoke, name) for name in spoke.__all__];"
        f"assert members and all(m.__module__.startswith('mpsearch.{spoke}.') for m in members)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("spoke", SPOKES)
def test_a_spoke_says_which_name_it_lacks(spoke: str) -> None:
    code = f"from mpsearch.{spoke} import Nothing"
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec(code)  # noqa: S102


def seconds(code: str) -> float:
    """The best of five fresh interpreters."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        return time.perf_counter() - start

    return min(once() for _ in range(5))


def test_the_import_is_light() -> None:
    heavy = "{'torch', 'scipy', 'networkx', 'pulp', 'tqdm'}"
    code = f"import sys, mpsearch; assert not {heavy} & set(sys.modules), sys.modules"
    ours, numpys = seconds(code), seconds("import numpy")
    print(f"import mpsearch {ours:.3f} s, import numpy {numpys:.3f} s, ratio {ours / numpys:.2f}")
    assert ours < 2 * numpys


def needed(*names: str) -> set[str]:
    """These distributions and all they need."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        wanted = [Requirement(line) for line in distribution(name).requires or []]
        waiting += [r.name for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="session")
def without_torch(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what solving needs.

    Its packages are links to the installed ones: no download, and torch is not there to be found.
    """
    home = tmp_path_factory.mktemp("without-torch")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python3*/site-packages")
    for name in needed("highspy", "networkx", "numpy", "pulp", "scipy"):
        files = distribution(name).files or []
        tops = {file.parts[0] for file in files} - {".."}
        for top in tops:
            if top != "__pycache__":
                (site / top).symlink_to(str(distribution(name).locate_file(top)))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(wheel)], check=True)
    absent = "import importlib.util as u; assert u.find_spec('torch') is None"
    subprocess.run([python, "-c", absent], check=True)
    return python.parent


def test_a_problem_is_solved_where_torch_is_not_installed(
    without_torch: Path, tmp_path: Path
) -> None:
    problem = {
        "schema": "mpsearch/problem/1",
        "layers": [{"name": "a"}, {"name": "b"}],
        "options": ["int4/int4", "int8/int8"],
        "loss": {"values": [[0.3, 0.1], [0.25, 0.1]]},
        "costs": {"size": {"unit": "byte", "values": [[50, 100], [20, 40]]}},
        "budgets": {"size": 120},
    }
    (tmp_path / "problem.json").write_text(json.dumps(problem))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [without_torch / "mpsearch", "solve", "problem.json", "-o", "allocation.json"],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    allocation = json.loads((tmp_path / "allocation.json").read_text())
    assert allocation["schema"] == "mpsearch/allocation/1"
    assert {name: layer["option"] for name, layer in allocation["layers"].items()} == {
        "a": "int8/int8",
        "b": "int4/int4",
    }
    assert allocation["loss"]["status"] == "optimal"
