"""A folder named like a module of the standard library must not get into its way (design.md section 7)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["operator", "runtime"])
def test_no_python_file_stands_directly_in_a_package_folder(folder):
    assert list((ROOT / folder).glob("*.py")) == []


def test_no_test_folder_is_called_operator_or_is_a_package():
    assert not any(path.name == "operator" for path in (ROOT / "tests").rglob("*") if path.is_dir())
    packages = [path.parent for path in (ROOT / "tests").rglob("__init__.py")]
    assert [folder for folder in packages if any(folder.glob("test_*.py"))] == []


def test_operator_is_the_standard_librarys_under_pytest():
    import operator  # noqa: PLC0415 - what the name means here and now is the question

    assert not str(operator.__file__).startswith(str(ROOT / "operator"))
    assert operator.add(1, 2) == 3


@pytest.mark.parametrize("safe", [[], ["-P"]])
def test_operator_is_the_standard_librarys_from_the_repository_root(safe):
    code = "import operator; print(operator.__file__)"
    done = subprocess.run(
        [sys.executable, *safe, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not done.stdout.startswith(str(ROOT / "operator"))


@pytest.mark.parametrize(
    ("module", "option"),
    [("lunaq_operator", "--help"), ("lunaq_runtime.ids", "--help"), ("pytest", "--version")],
)
def test_modules_run_from_the_repository_root(module, option):
    done = subprocess.run(
        [sys.executable, "-m", module, option], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
