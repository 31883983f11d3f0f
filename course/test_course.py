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
from handout import ROOT, write

LRT = (ROOT / "lrt.py").read_text(encoding="utf-8")
RIGHT = (ROOT / "course" / "right.py").read_text(encoding="utf-8")
GOOD = ("def shift_right(latent, first):\n"
        "    return torch.cat([first[:, None], latent[:, :-1]], 1)\n")
POINTS = {n: of for n, (of, _) in handout.EXERCISES.items()}


@pytest.fixture(scope="module")
def grader(tmp_path_factory):
    return grade.Grader(tmp_path_factory.mktemp("grader"))


def points(grader, path, text=None, numbers=tuple(POINTS)):
    """{exercise: points} and {exercise: what is said} of a file, with this text."""
    if text is not None:
        write(path, text)
    grader.numbers = numbers
    marks, _ = grader.grade(path)
    return {n: points for n, points, _, _ in marks}, {n: said for n, _, _, said in marks}


def test_each_exercise_of_a_handout_fails_until_it_is_written(tmp_path):
    """Settings of pytest in the folder above change nothing."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise SystemExit('conftest.py of the folder above')\n")
    folder = tmp_path / "class"
    handout.main([str(folder)])
    done = subprocess.run([sys.executable, "-m", "pytest", "-rA", "--tb=no", "-k", "test_ex"],
                          cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    failed = set(re.findall(r"^FAILED test_lrt.py::test_ex(\d)", done.stdout, re.M))
    assert failed == set(map(str, POINTS)), done.stdout
    blank = handout.definitions(ast.parse((folder / "lrt.py").read_text(encoding="utf-8")))
    for _, names in handout.EXERCISES.values():
        for name in names:
            docstring, last = blank[name].body
            assert "is not written yet" in ast.unparse(last), name
    with pytest.raises(SystemExit, match="exists"):
        handout.main([str(folder)])


def test_right_work_by_another_hand_has_full_points(grader):
    found, said = points(grader, ROOT / "course" / "right.py")
    assert found == POINTS, said


@pytest.mark.parametrize("n", [1, 4])
def test_an_exercise_that_is_left_out_costs_only_itself(n, grader, tmp_path):
    name = handout.EXERCISES[n][1][0].split(".")[-1]
    near = [m for m in POINTS if abs(m - n) < 2]
    found, said = points(grader, tmp_path / "left_out.py",
                         RIGHT.replace(f"def {name}(", "def other("), near)
    assert found == {m: POINTS[m] * (m != n) for m in near}, said


def test_a_wrong_exercise_costs_only_itself(grader, tmp_path):
    """Values: all its points. Gradients: 20 %. Robustness: 10 %."""
    text = LRT.replace("torch.cat([first[:, None], latent[:, :-1]], dim=1)", "latent", 1)
    text = text.replace("        self.require_unfinished()\n        keep", "        keep")
    text = text.replace("self.w_g(y)", "self.w_g(y).detach()")
    found, said = points(grader, tmp_path / "wrong.py", text, [1, 2, 3])
    assert found == {1: 0, 2: 6.3, 3: 9.6}, said
    assert "m_0" in said[1] and "robustness" in said[2] and "gradients" in said[3]


# What a file may be: its name, its content, points of 5, and what is said
CHEAT = "import sys\nX = {}\ndef shift_right(latent, first):\n    {}\n    return latent\n"
FILES = {
    "empty.py": ("\n", 0, "empty"),
    "new_syntax.py": ("x = lambda: (yield = 3)\n" + GOOD, 0, "line 1"),
    "deep.py": ("x = " + "(" * 5000, 0, "cannot read it"),
    "utf16.py": (GOOD.encode("utf-16"), 0, "UTF-8"),
    "large.py": ("#" * 2_000_000, 0, "less than 1 MB"),
    "other.py": ("def f():\n    pass\n", 0, "not in the file"),
    "no_such_file.py": (None, 0, "lrt.py"),
    "two/a.py": (GOOD, 0, "one lrt.py"), "two/b.py": (GOOD, 0, "one lrt.py"),
    "folder/inner/lrt.py": (("# é\n" + GOOD).encode("latin-1"), 5, ""),
    "folder/train.py": (GOOD, 5, ""),
    "every.py": ('\ufeff"""Doc."""\nfrom __future__ import annotations\nfrom torch import *\n'
                 "from lrt import norm as rms\nimport no_such_module\nONE = 1\n"
                 "torch.set_default_dtype(torch.float16)\nclass Pair:\n\tpass\n"
                 "def helper(x: Unknown):\n\treturn cat(x, ONE) + 0 * rms(x[1]).sum()\n"
                 "def norm(x):\n\treturn 0\n"
                 "def shift_right(latent, first):\n\tprint('x' * 10 ** 6)\n"
                 "\treturn helper([first[:, None], latent[:, :-ONE]])\n"
                 .replace("\n", "\r\n"), 5, ""),
    "waits.py": (CHEAT.format(0, "import time; time.sleep(1000)"), 0, "loop"),
    "memory.py": (CHEAT.format(0, "[0] * 10 ** 10"), 0, "Memory"),
    "exits.py": (CHEAT.format("sys.exit()", "pass"), 0, "SystemExit"),
    "ends.py": (CHEAT.format(0, "import os; os._exit(0)"), 0, "ended before"),
    "skips.py": (CHEAT.format(0, "import pytest; pytest.skip()"), 0, "was not run"),
    "ours.py": ("from lrt import shift_right as ours\n"
                + CHEAT.format(0, "return ours(latent, first)"), 0, "not written yet"),
    "reads.py": (CHEAT.format(0, "return __import__('runpy').run_path('lrt.py')['shift_right']"
                              "(latent, first)"), 0, "not written yet"),
    "close.py": (CHEAT.format(0, "__import__('test_lrt').close = lambda *a: None"), 0, "must fail"),
    "runtest.py": (CHEAT.format("setattr(__import__('pytest').Function, 'runtest', id)", "pass"),
                   0, "must fail"),
    "kinds.py": (CHEAT.format("setattr(sys.modules['__main__'], 'kind_of', lambda *a: 'gradients')",
                              "pass"), 0, "must fail"),
    "dumps.py": (CHEAT.format("setattr(__import__('json'), 'dumps', lambda x: '[]')", "pass"), 0,
                 "the grader stopped"),
}


def test_any_file_gets_its_points_or_a_line(tmp_path, monkeypatch, capsys):
    for name, (content, *_) in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    names = list(dict.fromkeys(name.split("/")[0] for name in FILES))
    (tmp_path / "conftest.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grade, "TEST_SECONDS", 5)
    grade.main([*names, "--exercises=1", "--csv"])
    rows = {row["file"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    for name, (_, right, said) in FILES.items():
        row = rows[name.split("/")[0]]
        assert float(row["points"]) == right and said in row["reasons"], row


def test_what_is_not_taken_is_named(grader, tmp_path):
    path = tmp_path / "lrt.py"
    path.write_bytes(FILES["every.py"][0].encode())
    notes = str(grade.Student(path, grader.ours).notes)
    for word in ("class Pair", "set_default_dtype", "no_such_module", "change of norm"):
        assert word in notes
    path.write_bytes(FILES["folder/inner/lrt.py"][0])
    assert "Latin-1" in str(grade.Student(path, grader.ours).notes)


def test_the_format_of_gradescope():
    found = json.loads(grade.gradescope("lrt.py", [(1, 5, 5, "right"), (2, 0, 7, "wrong")], ["a"]))
    assert found["score"] == 5 and "note: a" in found["output"]
    assert [test["max_score"] for test in found["tests"]] == [5, 7]


@pytest.mark.parametrize("variant, changed", [("keygates,after,twoback", [3, 4])])
def test_in_a_variant_its_own_solution_is_right_and_the_public_one_is_wrong(
        variant, changed, tmp_path):
    """Exercise 5 compares the whole recurrence with the second implementation."""
    for name in variant.split(","):
        assert handout.edition(name)["course/STUDENT.md"] != handout.edition()["course/STUDENT.md"]
    grader, numbers = grade.Grader(tmp_path, variant), [*changed, 5]
    found, said = points(grader, tmp_path / "right.py",
                         handout.edition(variant)["course/right.py"], numbers)
    assert found == {n: POINTS[n] for n in numbers}, said
    found, said = points(grader, ROOT / "lrt.py", numbers=changed)
    assert not any(found.values()), said


def test_a_piece_that_is_not_there_once_is_told():
    piece = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    texts = {"x": "a\n"}
    handout.apply(piece, texts)
    assert texts["x"] == "b\n"
    with pytest.raises(ValueError, match="0 times, not once"):
        handout.apply(piece, texts)
    with pytest.raises(ValueError, match="there is no variant"):
        handout.edition("nothing")
