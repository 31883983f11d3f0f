"""The course: handout, grader, wrong versions and the second implementation do what is said of them."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from course import grade as grader
from course.exercises import EXERCISES
from course.grade import grade_exercise, grade_files
from course.handout import blanked, definitions, handout
from course.mutants import changed, defined, killed_by
from course.second import SECOND
from course.wrong import MUTANTS, RIGHT
from test_lrt import KNOWN, known

HERE = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("which", KNOWN, ids=str)
def test_known_numbers_are_those_of_the_second_implementation(which):
    there, made = known(*which), SECOND[which[0]](*which[1:])
    assert set(there) == set(made)
    for name in made:
        np.testing.assert_allclose(there[name], made[name], rtol=0, atol=1e-11)


def test_lrt_is_short_and_stands_alone():
    text = (HERE / "lrt.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 330 and max(map(len, text.splitlines())) <= 100
    imported = {(node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
                for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))
                for alias in node.names}
    assert "torch" in imported and imported - {"torch"} <= set(sys.stdlib_module_names)
    done = subprocess.run([sys.executable, "-B", HERE / "lrt.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("mutant", MUTANTS[::9], ids=[f"{m[1]}: {m[0]}" for m in MUTANTS[::9]])
def test_mutant_is_rejected(mutant):
    """Every ninth, for the sake of time; python test_lrt.py --mutants tries all."""
    killers, said = killed_by(mutant[1], changed(*mutant[1:]))
    assert killers, f"{mutant[1]} passes its tests: {mutant[0]}"


@pytest.mark.parametrize("function, source", RIGHT, ids=[f for f, _ in RIGHT])
def test_right_work_by_another_hand_passes(function, source):
    killers, said = killed_by(function, defined(source, function.split(".")[-1]), quick=True)
    assert not killers, f"{killers}: {said}"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handout")
    handout(folder)
    return folder


def pytest_in(folder, *args):
    done = subprocess.run([sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *args],
                          cwd=folder, text=True,
                          capture_output=True, encoding="utf-8",
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"})
    return done.stdout + done.stderr


def test_handout_gives_no_solution_away(given):
    text, removed = blanked((HERE / "lrt.py").read_text(encoding="utf-8"))
    assert text.count("raise NotImplementedError") == len(EXERCISES) and sum(e[1] for e in EXERCISES) == 80
    trivial = {line.strip() for line in text.splitlines()}              # in the handout because it is given
    secrets = {line.split("  #")[0].strip() for line in removed if len(line.strip()) > 16} - trivial
    assert len(secrets) > 50
    names = sorted(path.name for path in given.iterdir())
    assert names == sorted("lrt.py test_lrt.py README.md train.py sample.py prepare_data.py support "
                           "requirements.txt LICENSE known.npz".split())
    assert not list(given.rglob("*/test*"))
    for path in given.rglob("*"):
        lines = "" if path.is_dir() else path.read_bytes().decode("utf-8", "replace")
        assert not [secret for secret in secrets if secret in lines], path.name
    tests = (given / "test_lrt.py").read_text(encoding="utf-8")
    for word in ("MUTANTS", "naive_", "EXERCISES", "def grade", "Instructor"):
        assert word not in tests, word
    numbers_in_text = re.findall(r"\d+(?:[,.]\d+)* %", (given / "README.md").read_text(encoding="utf-8"))
    assert set(numbers_in_text) <= {"100 %"}
    with pytest.raises(SystemExit, match="not an empty folder"):
        handout(given)


def test_handout_is_complete(given, tmp_path):
    """Every name that the tests use is there; what is not written fails and says so; what is written
    passes."""
    tree = ast.parse((given / "test_lrt.py").read_text(encoding="utf-8"))
    nodes, stored = list(ast.walk(tree)), {*dir(__import__("builtins")), "__file__", "__name__"}
    for n in nodes:
        stored |= {getattr(n, "name", None), getattr(n, "arg", None)}
        aliases = [a for a in getattr(n, "names", []) if isinstance(a, ast.alias)]
        stored |= {(a.asname or a.name).split(".")[0] for a in aliases}
        stored |= {n.id} if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load) else set()
    used = {n.id for n in nodes if isinstance(n, ast.Name)} - stored
    assert not used
    out = pytest_in(given, "-k", "ex1 or ex4 or plain_needs or parameter", "--tb=line")
    assert " passed" in out and all(f"not written yet: exercise {n}" in out for n in (1, 4)), out
    shutil.copytree(given, tmp_path / "done")
    shutil.copy(HERE / "lrt.py", tmp_path / "done" / "lrt.py")
    out = pytest_in(tmp_path / "done", "-k",
                    "ex1 or ex2 or ex3 or ex4 or ex5_the or ex6_subset or ex7_logits or ex8_stops",
                    "--tb=line")
    assert " passed" in out and "failed" not in out and "error" not in out, out
    assert not list(given.rglob("__pycache__"))


GOOD = ast.get_source_segment((HERE / "lrt.py").read_text(encoding="utf-8"),
                              definitions((HERE / "lrt.py").read_text(encoding="utf-8"))["shift_right"])
BROKEN = {          # file: (its bytes, points for exercise 1, what is said about it)
    "windows.py": (("\ufeffimport nothing_like_it\r\nraise SystemExit\r\n"
                    + GOOD.replace("\n", "\r\n")).encode(), 5, "all"),
    "helper.py": (b"from math import pi\nLAST = -1\n\ndef zeros(x):\n    return 0 * x[:, :1]\n\n\ndef "
                  b"shift_right(latent, first=None):\n"
                  b"    print('x' * 1000000)\n    return helped(latent, first)\n\n\ndef helped(latent, "
                  b"first):\n"
                  b"    return torch.cat([zeros(latent) if first is None else first[:, None], latent[:, "
                  b":LAST]], 1)\n", 5, "all"),
    "endless.py": (b"def shift_right(latent, first=None):\n    while True:\n        print(1)\n", 0,
                   "endless"),
    "exits.py": (b"def shift_right(latent, first=None):\n    torch.os._exit(0)\n", 0, "_exit"),
    "quits.py": (b"def shift_right(latent, first=None):\n    raise SystemExit(0)\n", 0, "tests"),
    "wrong.py": (GOOD.replace("latent[:, :-1]", "latent[:, :-1].detach()").encode(), 0,
                 "no gradient reaches latent"),
    "decorated.py": (b"@nothing\ndef shift_right(latent, first=None):\n    return latent\n", 0, "nothing"),
    "imports.py": (b"import os\ndef shift_right(latent, first=None):\n    return os.nothing\n", 0, "uses os"),
    "absent.py": (b"def shift_right(latent, first=None):\n    import nothing_like_it\n", 0,
                  "nothing_like_it"),
    "syntax.py": (b"def shift_right(latent:\n", 0, "syntax error in line 1"),
    "binary.py": (bytes(range(256)), 0, "UTF-8"),
    "zeros.py": (b"x = 1\0", 0, "source code"),
    "deep.py": (b"x = " + b"(" * 5000, 0, ""),
    "large.py": (b"#" * 2_000_000, 0, "too many"),
    "empty.py": (b"", 0, "no function shift_right"),
    "class.py": (b"class shift_right:\n    pass\n", 0, "no function shift_right"),
    "blank.py": (b"def shift_right(latent, first=None):\n    raise NotImplementedError('exercise 1')\n", 0,
                 "not written yet"),
}


def test_grader_takes_any_file(tmp_path):
    """Two at a time, as each may need a process."""
    def graded(name):
        (tmp_path / name).write_bytes(BROKEN[name][0])
        return grade_exercise(tmp_path / name, 1, 8 if name == "endless.py" else 60)

    with ThreadPoolExecutor(2) as pool:
        for (name, (_, points, said)), got in zip(BROKEN.items(), pool.map(graded, BROKEN)):
            assert got[0] == points and said in got[1] and "\n" not in got[1] and len(got[1]) <= 500, (name, got)


def test_grader_counts_tests(tmp_path, monkeypatch):
    """Where the process ends early with status 0, no points; nor where a name is guessed that is not
    forbidden."""
    monkeypatch.setattr(grader, "EXERCISES", [("shift_right", 5, 10, "")] + EXERCISES[1:])
    (tmp_path / "a.py").write_text("def shift_right(latent, first=None):\n    getattr(getattr(torch, 'o' + "
                                   "'s'), '_ex' + 'it')(0)\n", encoding="utf-8")
    assert grade_exercise(tmp_path / "a.py", 1) == (0, "the process ended before the tests did")


def test_report_of_several_files(tmp_path, capsys, monkeypatch):
    files = [str(tmp_path / name) for name in ("missing.py", "comma, and é.py")]
    Path(files[1]).write_bytes(b"(")
    monkeypatch.setattr(grader, "grade_exercise", lambda path, n,
                        limit: (EXERCISES[n - 1][1], "fine") if "missing" not in path
                        else (0, "cannot be read"))
    grade_files(files)
    out = capsys.readouterr().out
    assert out.count("\n") == 2 + 1 + len(EXERCISES) and "0 of 80" in out and "80 of 80" in out
    grade_files(files, "csv")
    table = [line.split(",")[-2:] for line in capsys.readouterr().out.splitlines()]
    assert table == [["points", "of"], ["0", "80"], ["80", "80"]]
    grade_files(files[:1], "json")
    result = json.loads(capsys.readouterr().out)
    assert result["score"] == 0 and [t["max_score"] for t in result["tests"]] == [e[1] for e in EXERCISES]
