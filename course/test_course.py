"""Wrong versions are rejected, right ones pass, and the second implementation gives the numbers."""
import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lrt
from course.exercises import NUMBERS
from course.mutants import failures, wrong_versions
from course.second import SECOND
from course.source import defined, definitions, lrt_text
from support.script import Unusable
from support.tiny import KNOWN, known

HERE = Path(__file__).resolve().parent.parent
RIGHT = (HERE / "course" / "right.py").read_text(encoding="utf-8")


def test_lrt_is_short_and_stands_alone():
    lines = lrt_text().splitlines()
    assert len(lines) <= 330 and max(map(len, lines)) <= 100
    imported = set()
    for node in ast.walk(ast.parse(lrt_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add("." if node.level else node.module.split(".")[0])
    assert "torch" in imported and imported - {"torch"} <= set(sys.stdlib_module_names)
    done = subprocess.run([sys.executable, "-B", HERE / "lrt.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("which", KNOWN, ids=str)
def test_known_numbers_are_those_of_the_second_implementation(which):
    there, made = known(*which), SECOND[which[0]](*which[1:])
    assert set(there) == set(made)
    for name in made:
        np.testing.assert_allclose(there[name], made[name], rtol=0, atol=1e-11)


# ---- Wrong versions

VERSIONS = wrong_versions()


def test_every_wrong_version_is_one():
    """It can be made of lrt.py as it is, is another text, and is there once."""
    made = set()
    for version in VERSIONS:
        text = version.text()
        compile(text, "<wrong>", "exec")
        made.add((version.function, text))
        assert version.changes, version
    names = {(version.function, version.what) for version in VERSIONS}
    assert len(VERSIONS) >= 320 and len(names) == len(made) == len(VERSIONS)
    for function in NUMBERS:
        assert sum(version.function == function for version in VERSIONS) >= 8, function


@pytest.mark.parametrize("version", VERSIONS[::10], ids=lambda v: f"{v.function}: {v.what}")
def test_wrong_version_is_rejected(version):
    """Every tenth, for the sake of time; python course/mutants.py tries all."""
    new = defined(version.text(), version.function.split(".")[-1])
    assert failures(version.function, new), f"{version.function} passes its tests: {version.what}"


@pytest.mark.parametrize("text, message", [
    ("shift_right\n- x\n+ y\n", "line 1: a block begins"),
    ("shift_right: x\n+ y\n", "line 2: expected"),
    ("shift_right: x\n- y\n+ z\nwhat\n", "line 4: expected"),
    ("- y\n+ z\n", "line 1: a block begins")])
def test_text_that_is_no_wrong_version(text, message):
    with pytest.raises(Unusable, match=message):
        wrong_versions(text)


def test_a_wrong_version_that_no_longer_fits_is_told():
    version, = wrong_versions("# a remark\nshift_right: too old\n-     return 1\n+     return 2\n")
    with pytest.raises(Unusable, match="not there once"):
        version.text()


# ---- Right versions

@pytest.mark.parametrize("function", NUMBERS)
def test_right_work_by_another_hand_passes(function, monkeypatch):
    """The quick tests; python course/grade.py course/right.py runs all."""
    found = definitions(RIGHT)
    helper = defined(ast.unparse(found["all_written"]), "all_written")
    monkeypatch.setattr(lrt, "all_written", helper, raising=False)
    new = defined(ast.unparse(found[function]), function.split(".")[-1])
    assert not failures(function, new, quick=True)
