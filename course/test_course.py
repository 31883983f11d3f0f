"""Handout, grader and variants. `python course/mutants.py` tries the wrong versions."""
import ast
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import grade
import handout
import variants
from variants import ROOT

LRT = (ROOT / "lrt.py").read_text(encoding="utf-8")
RIGHT = (ROOT / "course" / "right.py").read_text(encoding="utf-8")
GOOD = ("def shift_right(latent, first):\n"
        "    return torch.cat([first[:, None], latent[:, :-1]], 1)\n")
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def grader():
    with grade.Grader("", list(handout.EXERCISES)) as grader:
        yield grader


def points(marks):
    return [mark[1] for mark in marks]


# ---- The handout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A handout, below a folder with settings of pytest that would break it."""
    above = tmp_path_factory.mktemp("above")
    (above / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (above / "conftest.py").write_text("raise SystemExit('conftest.py of the folder above')\n")
    handout.main([str(above / "class")])
    return above / "class"


def run_tests(folder, choice):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rA", "--tb=no", "-k",
                           choice], cwd=folder,
                          env=QUIET, capture_output=True, text=True)
    lines = re.findall(r"^(PASSED|FAILED|ERROR) test_lrt.py::test_(ex\d)", done.stdout, re.M)
    return {number: {word for word, n in lines if n == number}
            for number in sorted({number for _, number in lines})}


def test_each_exercise_fails_in_the_handout_and_passes_when_written(folder):
    numbers = [f"ex{n}" for n in handout.EXERCISES]
    found = run_tests(folder, "ex")
    assert list(found) == sorted(numbers) and all("FAILED" in words for words in found.values())
    blank = (folder / "lrt.py").read_text(encoding="utf-8")
    variants.write(folder / "lrt.py", LRT)
    assert run_tests(folder, "ex1 or ex2 or ex3") == dict.fromkeys(numbers[:3], {"PASSED"})
    variants.write(folder / "lrt.py", blank)


def test_no_removed_line_is_handed_out(folder):
    """Except for lines that given functions have, too."""
    left = "\n".join(p.read_text(encoding="utf-8") for p in folder.glob("*.py")
                     if p.name != "test_lrt.py")
    found, removed = handout.definitions(ast.parse(LRT)), set()
    for _, names in handout.EXERCISES.values():
        for name in names:
            lines = LRT.splitlines()[found[name].body[0].end_lineno:found[name].end_lineno]
            removed |= {line.split("#")[0].strip() for line in lines}
    assert {line for line in removed if len(line) > 30 and line in left} <= {
        "cache = self.init_cache(len(idx))", "require_whole(0, sweeps=sweeps)",
        "return self.forward_parallel(idx, targets)"}
    docstring = ast.get_docstring(found["GPT.sweep"])
    assert docstring in left and "exercise 6: GPT.sweep is not written yet" in left


def test_a_folder_with_something_in_it_is_left_alone(folder, tmp_path):
    with pytest.raises(SystemExit, match="not an empty folder"):
        handout.main([str(folder)])
    handout.main([str(tmp_path / "new"), "--exercises=1-5"])
    text = (tmp_path / "new" / "lrt.py").read_text(encoding="utf-8")
    assert set(re.findall(r'Error\("exercise (\d)', text)) == set("12345")
    for wrong in ("0", "1-12", "a", "5-1"):
        with pytest.raises(ValueError, match="exercises"):
            handout.chosen(wrong)


# ---- The grader


def test_right_work_by_another_hand_has_full_points(grader):
    marks, notes = grader.grade(ROOT / "course" / "right.py")
    assert points(marks) == [of for of, _ in handout.EXERCISES.values()], marks
    assert not notes


def test_a_wrong_exercise_costs_only_itself(grader, tmp_path):
    """Values: all its points. Gradients: 20 %. A blank one, or one that is not there, is told."""
    text = LRT.replace("torch.cat([first[:, None], latent[:, :-1]], dim=1)", "latent", 1)
    text = text.replace("self.latent[:, -1]", "self.latent[:, -1].detach()")
    variants.write(tmp_path / "wrong.py", text.replace("def qkv(", "def renamed("))
    grader.numbers, numbers = [1, 2, 3], grader.numbers
    marks, _ = grader.grade(tmp_path / "wrong.py")
    blank = grade.Student(ROOT / "lrt.py", LRT)
    variants.write(tmp_path / "blank.py", handout.blanked(LRT, [3]))
    grader.numbers = numbers
    assert points(marks) == [0, 5.6, 0]
    assert "m_0" in marks[0][3] and "gradients" in marks[1][3] and "no function" in marks[2][3]
    assert grade.Student(tmp_path / "blank.py", LRT).state_of(3) == "not written yet"
    assert blank.state_of(3) is None


# What a file may be: its name, its content, points of 5, and what is said
CHEAT = ("def shift_right(latent, first):\n    import torch, pytest, test_lrt, os\n    {}\n"
         "    return latent\n")
FILES = {
    "empty.py": ("\n", 0, "is empty"),
    "new_syntax.py": ("x = lambda: (yield = 3)\n" + GOOD, 0, "line 1"),
    "deep.py": ("x = " + "(" * 5000, 0, ""),
    "zeros.py": (b"x = 1\0", 0, "zero bytes"),
    "large.py": ("#" * 2_000_000, 0, "less than 1 MB"),
    "other.py": ("x = 1\n", 0, "no function shift_right"),
    "no_such_file.py": (None, 0, "lrt.py"),
    "two/a.py": (GOOD, 0, "hand in one file"), "two/b.py": (GOOD, 0, "hand in one file"),
    "folder/inner/lrt.py": (GOOD, 5, ""), "folder/train.py": (GOOD, 5, ""),
    "every.py": (f'\ufeff"""Doc."""\nfrom __future__ import annotations\nfrom torch import *\n'
                 "from lrt import norm as rms\nimport no_such_module\nONE = 1\n"
                 "torch.set_default_dtype(torch.float16)\nclass Pair:\n\tpass\n"
                 "def helper(x: Unknown):\n\treturn cat(x, ONE) + 0 * rms(x[1]).sum()\n"
                 "def shift_right(latent, first):\n\tprint('x' * 10 ** 6)\n"
                 "\treturn helper([first[:, None], latent[:, :-ONE]])\n"
                 .replace("\n", "\r\n"), 5, ""),
    "latin.py": (("# é\n" + GOOD).encode("latin-1"), 5, ""),
    "waits.py": ("import time\ndef shift_right(latent, first):\n    time.sleep(1000)\n", 0, "loop"),
    "memory.py": ("def shift_right(latent, first):\n    return [0] * 10 ** 10\n", 0, "emory"),
    "exit.py": (CHEAT.format("os._exit(0)"), 0, "ended before"),
    "atexit.py": (CHEAT.format("__import__('atexit').register(os._exit, 0)"), 0, "m_0"),
    "skip.py": (CHEAT.format("pytest.skip()"), 0, "tests fail"),
    "patch.py": (CHEAT.format("test_lrt.close = torch.Tensor.equal = lambda *a: True"), 0,
                 "must fail"),
    "report.py": (CHEAT.format("import _pytest.reports as r; r.TestReport.outcome = 'passed'"),
                  0, ""),
}


def test_any_file_gets_its_points_or_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grade, "TEST_SECONDS", 25)
    names = []
    for name, (content, *_) in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        names.append(str(path if "/" not in name else tmp_path / name.split("/")[0]))
    names = list(dict.fromkeys(names))
    (tmp_path / "conftest.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    grade.main([*names, "--exercises=1", "--csv", f"--feedback={tmp_path / 'texts'}"])
    rows = {Path(row["file"]).name: row for row in csv.DictReader(
        capsys.readouterr().out.splitlines())}
    for name, (_, right, said) in FILES.items():
        row = rows[name.split("/")[0]]
        assert (float(row["points"]), row["of"]) == (right, "5"), row
        assert said in row["reasons"] and len(row["reasons"]) < 600, row
    notes = next((tmp_path / "texts").glob("*every.py.txt")).read_text()
    assert all(word in notes for word in ("class Pair", "set_default_dtype", "no_such_module"))
    assert "Latin-1" in next((tmp_path / "texts").glob("*latin.py.txt")).read_text()


def test_gradescope_and_leaderboard(tmp_path, capsys):
    variants.write(tmp_path / "lrt.py", GOOD)
    rows = [dict(step=50, seconds=2.0), dict(step=50, exact=1.7), dict(step=100, seconds=20.0),
            dict(step=100, exact=1.5)]
    variants.write(tmp_path / "log.jsonl", "\n".join(map(json.dumps, rows)))
    grade.main([str(tmp_path), "--exercises=1-2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["score"] == 5 and [test["max_score"] for test in found["tests"]] == [5, 7]
    assert found["leaderboard"] == [{"name": "exact loss", "value": 1.7, "order": "asc"}]
    assert grade.csv_line(["=1+1", "a,b"]) == "'=1+1,\"a,b\""


# ---- Variants


@pytest.mark.parametrize("variant", ["softgates,after", "keygates,twoback"])
def test_in_a_variant_its_own_solution_is_right_and_the_public_one_is_wrong(variant, tmp_path):
    texts = variants.edition(variant)
    variants.write(tmp_path / "right.py", texts["right.py"])
    with grade.Grader(variant, [3, 4]) as grader:
        for path, right in ((tmp_path / "right.py", [12, 13]), (ROOT / "lrt.py", [0, 0])):
            marks, _ = grader.grade(path)
            assert points(marks) == right, grade.report(variant, marks, [])
        assert "consistent" in texts["test_lrt.py"]
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "consistent and shared"],
                              cwd=grader.base, env=QUIET, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_text_that_is_not_there_once_is_told():
    for text in ("", "a a"):
        with pytest.raises(ValueError, match="times, not once"):
            variants.replaced(text, [("a", "b")], "lrt.py")
    with pytest.raises(ValueError, match="there is no variant"):
        variants.edition("nothing")
