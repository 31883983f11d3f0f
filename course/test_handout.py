"""The table of exercises, and what a class gets."""
import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import prepare_data
import sample
import train
from course.cases import cases
from course.exercises import EXERCISES, NUMBERS, checked, chosen, in_words, points_of
from course.handout import blanked, handout, main, students_page
from course.source import defined, definitions, lrt_text, owner_of
from support.script import Unusable
from support.testing import TEXT, run

HERE = Path(__file__).resolve().parent.parent
TABLE = checked(EXERCISES)


def without(*numbers):
    return checked([exercise for n, exercise in TABLE.items() if n not in numbers])


# ---- The table

def test_numbers_belong_to_functions():
    """They are those of the tests' names, and of functions of lrt.py with a docstring."""
    found = definitions(lrt_text())
    tests = (HERE / "test_lrt.py").read_text(encoding="utf-8")
    assert list(NUMBERS.values()) == list(range(1, 10)) and set(TABLE) == set(NUMBERS.values())
    for name, number in NUMBERS.items():
        assert ast.get_docstring(found[name])
        heading = rf"# ---- Exercise {number}: {re.escape(name)} -"
        section = re.search(heading + r".*?(?=# ---- |\Z)", tests, re.S)
        assert section, f"{name}: its tests are not under its name"
        assert set(re.findall(r"def test_(ex\d+|\w+?)_", section[0])) == {f"ex{number}"}
    assert points_of(without(9)) == 80 and points_of(TABLE) == 92


@pytest.mark.parametrize("change, message", [
    (lambda e: e[:1] * 2, "twice"),
    (lambda e: [], "empty"),
    (lambda e: [dataclasses.replace(e[0], function="GPT.fit")], "no exercise"),
    (lambda e: [dataclasses.replace(e[0], points=0)], "points"),
    (lambda e: [dataclasses.replace(e[0], points=2.5)], "points"),
    (lambda e: [dataclasses.replace(e[0], stage=9)], "stage"),
    (lambda e: [dataclasses.replace(e[0], stage=3), e[1]], "later"),
])
def test_a_table_that_cannot_be_says_why(change, message):
    with pytest.raises(Unusable, match=message):
        checked(change(list(EXERCISES)))


def test_rows_may_be_in_any_order():
    assert list(checked(reversed(EXERCISES))) == list(TABLE)


@pytest.mark.parametrize("text, numbers", [
    ("1-5", [1, 2, 3, 4, 5]), ("2", [2]), ("1,3,8-9", [1, 3, 8, 9]), ("7-20", [7, 8, 9])])
def test_exercises_are_chosen_by_number(text, numbers):
    assert list(chosen(text, TABLE)) == numbers
    assert list(chosen(text, without(5))) == [n for n in numbers if n != 5]


@pytest.mark.parametrize("text", ["", "0", "a", "5-1", "1-", "12", "-3", "1,,2", "٣-٢"])
def test_exercises_that_are_not_there(text):
    with pytest.raises(Unusable, match="exercises"):
        chosen(text, TABLE)


@pytest.mark.parametrize("numbers, text", [
    ([1], "1"), ([1, 2], "1 and 2"), ([1, 2, 3], "1 to 3"), ([1, 3], "1 and 3"),
    ([1, 2, 3, 5, 7, 8], "1 to 3, 5, 7 and 8")])
def test_numbers_in_words(numbers, text):
    assert in_words(numbers) == text


# ---- What is taken out, and the students' page, for other tables

OTHER_TABLES = [without(n) for n in TABLE] + [without(*(set(TABLE) - {n})) for n in TABLE]


@pytest.mark.parametrize("table", OTHER_TABLES, ids=in_words)
def test_other_tables(table):
    """Each single exercise left out, and only one left in."""
    text, _ = blanked(table)
    for name, number in NUMBERS.items():
        body = ast.get_source_segment(text, definitions(text)[name])
        assert (f'NotImplementedError("exercise {number}: ' in body) == (number in table)
    page = students_page(table)
    assert not re.search(r"[{}]|<!--", page)
    rows = re.findall(r"^\| (\d) \| `(.*?)` \| (\d+) ", page, re.M)
    assert rows == [(str(n), e.function, str(e.points)) for n, e in table.items()]
    assert [int(n) for n in re.findall(r"^- (\d): ", page, re.M)] == list(table)
    assert f"{points_of(table)} points are for the" in page
    assert page.count("### Stage") == len({e.stage for e in table.values()})
    for heading in re.findall(r"^### Stage .*", page, re.M):
        assert "exercise" in heading and heading.split(", ", 1)[1]
    assert set(re.findall(r"-k ex(\d)", page)) == {str(min(table))}
    for number in set(TABLE) - set(table):
        assert not re.search(rf"\bexercise {number}\b", page), number
    for numbers, command in (((1, 2, 3, 4, 5), "out-exact"), ((6, 7), "out-8"), ((8,), "ROMEO"),
                             ((9,), "out-hops0")):
        assert (command in page) == any(n in table for n in numbers), command
    assert ("**Hops.**" in page) == ("lrt_hops" in page) == (9 in table)
    questions = [int(n) for n in re.findall(r"^\*\*Question (\d)\*\* \(5 points", page, re.M)]
    assert questions == [n for n in (1, 2, 3, 4) if {1: {6, 7}, 2: {6}, 3: {7}, 4: set(table)}[n]
                         & set(table)]
    assert f"{5 * len(questions)} points, half a page each" in page
    assert ("each stage on its own day" in page) == (len({e.stage for e in table.values()}) > 1)


def test_commands_come_when_they_can_be_run():
    page = students_page(without(2, 5, 7))
    stages = re.split(r"^### ", page, flags=re.M)[1:]
    assert [stage[:stage.index("\n")] for stage in stages] == [
        "Stage 1, exercises 1, 3 and 4: exact", "Stage 2, exercise 6: the dial",
        "Stage 3, exercise 8: inference", "Stage 4, exercise 9: for those who want more"]
    where = {word: next(i for i, stage in enumerate(stages, 1) if word in stage)
             for word in ("out-exact", "lrt_subsets=8", "sample.py", "lrt_hops=2")}
    assert where == {"out-exact": 1, "lrt_subsets=8": 2, "sample.py": 3, "lrt_hops=2": 4}
    all_in_one = [dataclasses.replace(e, stage=1, points=3) for e in EXERCISES[:8]]
    page = students_page(checked(all_in_one))
    assert "Stage 1, exercises 1 to 8: exact" in page and "eight functions" in page
    assert "Budget about five hours" in page and "**Question 2** (5 points, with stage 1)" in page
    assert "24 points are for the" in page


def test_a_students_page_with_an_unknown_part():
    with pytest.raises(Unusable, match="there is no part <!-- afterwards 5 -->"):
        students_page(TABLE, "x\n<!-- afterwards 5 -->\ny\n")


# ---- The folder

@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handout")
    handout(folder, TABLE)
    return folder


def python_in(folder, *args):
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-B", *args], cwd=folder, text=True, env=env,
                          capture_output=True, encoding="utf-8")
    return done.returncode, done.stdout + done.stderr


# Several scripts' help in one process, as each would import torch anew
HELP = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "-h"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as e:
        assert not e.code, script
"""


def pytest_in(folder, *args):
    return python_in(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *args)[1]


def test_handout_gives_no_solution_away(given):
    text, removed = blanked(TABLE)
    assert text.count("raise NotImplementedError") == len(TABLE)
    secrets = {line.split("  #")[0].strip() for line in removed if len(line.strip()) > 16}
    secrets = {line for line in secrets if line not in text}        # given elsewhere, too
    secrets.discard("with torch.no_grad():")                        # no secret
    assert len(secrets) > 50
    assert sorted(path.name for path in given.iterdir()) == sorted(
        "lrt.py test_lrt.py README.md train.py sample.py prepare_data.py support assets "
        "requirements.txt LICENSE known.npz".split())
    for path in given.rglob("*"):
        if path.is_file():
            lines = path.read_bytes().decode("utf-8", "replace")
            assert not [secret for secret in secrets if secret in lines], path.name
            assert "naive_" not in lines and "wrong_versions" not in lines, path.name
    shares = re.findall(r"\d+(?:[,.]\d+)* %", (given / "README.md").read_text(encoding="utf-8"))
    assert set(shares) <= {"100 %"}


def test_handout_is_for_an_empty_folder(given, tmp_path, capsys):
    for wrong in ([str(given)], [], ["a", "b"], [str(given / "lrt.py")]):
        with pytest.raises(SystemExit) as e:
            main(wrong)
        assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert main([str(tmp_path / "new" / "folder")]) is None


def test_handout_has_what_it_names(given):
    """Its tests are ours, unchanged; programs that its page names are there, and what they
    import."""
    for name in ("test_lrt.py", "train.py", "sample.py", "prepare_data.py"):
        assert (given / name).read_bytes() == (HERE / name).read_bytes()
    page = (given / "README.md").read_text(encoding="utf-8")
    for script in re.findall(r"^    python (\S+\.py)", page, re.M):
        assert (given / script).exists(), script
    assert "assets/plot.py" in page and "pip install matplotlib" in page
    helped = python_in(given, "-c", HELP, "train.py", "sample.py", "prepare_data.py")
    assert helped[0] == 0, helped
    assert python_in(given, "assets/plot.py", "-h")[0] == 0
    for path in given.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
            if (module or "").startswith("support"):
                assert (given / (module.replace(".", "/") + ".py")).exists() or module == "support"


def test_handout_says_what_is_not_written(given):
    out = pytest_in(given, "-k", "ex1_each or ex4_no or ex9_a_plain or parameter or consistent_pl")
    assert " passed" in out, out
    for n in (1, 4):
        assert f"not written yet: exercise {n}" in out, out
    assert not list(given.rglob("__pycache__"))


# ---- Each stage can be finished with what it has

def only_written(monkeypatch, n):
    """lrt as it is in a handout in which exercises 1 to n are written."""
    rest = {number: exercise for number, exercise in TABLE.items() if number > n}
    text = blanked(rest)[0]
    found = definitions(text)
    for exercise in rest.values():
        owner, name = owner_of(exercise.function)
        source = ast.get_source_segment(text, found[exercise.function], padded=True)
        source = textwrap.dedent(source)
        monkeypatch.setattr(owner, name, defined(source, name))


@pytest.mark.parametrize("n", TABLE)
def test_tests_of_an_exercise_need_nothing_later(monkeypatch, n):
    """With 1 to n written, and the others not, all tests of n pass: each with its first
    parameters."""
    only_written(monkeypatch, n)
    assert n == 9 or "not written" in failing(test_lrt_call(n + 1))
    seen = set()
    for name, test in cases(n):
        if name not in seen:
            test()
            seen.add(name)
    assert len(seen) > 2


def test_lrt_call(n):
    return cases(n)[0][1]


test_lrt_call.__test__ = False


def failing(call):
    with pytest.raises(pytest.fail.Exception) as e:
        call()
    return str(e.value)


def commands_of_stage(stage):
    """The commands of a stage on the students' page."""
    sections = re.split(r"^### |^## ", students_page(TABLE), flags=re.M)
    section = next(s for s in sections if s.startswith(f"Stage {stage},"))
    lines = re.findall(r"^    python (\S+\.py.*)", section, re.M)
    return [shlex.split(re.split(r" {2,}", line)[0]) for line in lines]


def shortened(words):
    """A command as it is, but for a model and a run of few seconds."""
    if words[0] == "train.py":
        small = "--n_layer=1 --n_head=2 --n_embd=16 --batch_size=8 --eval_interval=4 --device=cpu"
        words = words + small.split() + ["--max_iters=4"]
        if "--dataset=parity" not in words:
            words += ["--dataset=mine", "--block_size=16"]
    words = [word.replace("some_text.txt", "text.txt") for word in words]
    return ["--max_new_tokens=20" if "max_new" in word else word for word in words]


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_commands_of_a_stage_end_in_order(tmp_path, monkeypatch, capsys, stage):
    """With what is written by then, and with what the commands of earlier stages have left."""
    monkeypatch.chdir(tmp_path)
    programs = {"train.py": train, "sample.py": sample}
    Path("text.txt").write_text(TEXT + "ROMEO: what?\n" * 9, encoding="utf-8", newline="\n")
    prepare_data.prepare("mine", "char", "text.txt")
    prepare_data.prepare("parity", length=8, rows=120)
    if stage == 3:
        assert run(train, *shortened(["train.py", "--lrt=1"])[1:]) == 0
    only_written(monkeypatch, max(n for n, e in TABLE.items() if e.stage == stage))
    commands = commands_of_stage(stage)
    assert commands
    for program, *args in commands:
        if program not in programs:
            assert program == "assets/plot.py"
            continue
        status = run(programs[program], *shortened([program, *args])[1:])
        said = capsys.readouterr()
        assert status == 0 and "Traceback" not in said.err, (program, args, said)
        if program == "train.py" and stage == 1:
            assert "left out: " in said.out + said.err, (args, said)
