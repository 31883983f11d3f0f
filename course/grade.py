"""Points for students' files:

    python course/grade.py FILE ... [--variant=NAME] [--exercises=1-5] [--csv] [--json]

A student's functions are put into our lrt.py, and our test_lrt.py is run on them: first on those of
all exercises, then, where something failed, on those of each such exercise with ours for all
others. So an exercise that is wrong or missing costs its own points and no others.
"""
import argparse
import ast
import csv
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from handout import EXERCISES, blanked, chosen, definitions, edition, write, write_tests

SHARES = {"values": 1, "gradients": 0.2, "robustness": 0.1}     # of the points, if it is wrong
RUN_SECONDS, TEST_SECONDS = 180, 30     # worker.py has limits of CPU time and of memory
ENDED = "the process ended before the tests did: does your code exit, or need too much memory or " \
        "time?"
UNFAIR = "a test that must fail passes after your code ran: change nothing of torch and the tests"
ENVIRONMENT = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH")     # what a run sees of ours

# In each run, these tests must fail in these ways. Or else the student's code has changed how
# numbers are compared, or how tests are run.
MUST_FAIL = {"test_ex0_zeros_are_ones": "values", "test_ex0_nothing_is_known": "values",
             "test_ex0_slopes": "gradients", "test_ex0_all_is_refused": "robustness"}
MUST_FAIL_TEXT = """

def test_ex0_zeros_are_ones():
    close(torch.zeros(2), torch.ones(2))


def test_ex0_nothing_is_known():
    close({}, known("qkv", "plain", "0"))


def test_ex0_slopes():
    slopes(lambda: 0 * tiny().alpha.detach().sum(), tiny())


def test_ex0_all_is_refused():
    refused(dict, [dict(x=1)])
"""


class Refused(Exception):
    """Nothing of a file can be graded. The message says what the student should do."""


# ---- A student's file


def read(path):
    """The text of a file, or of the one lrt.py in a folder; and notes about it."""
    if path.is_dir():
        files = [*path.rglob("lrt.py")] or [*path.rglob("*.py")]
        if len(files) != 1:
            raise Refused(f"the folder has {len(files)} files that may be it: hand in one lrt.py")
        path = files[0]
    if not path.is_file() or path.stat().st_size > 10 ** 6:
        raise Refused("hand in one file lrt.py, of less than 1 MB")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return data.decode("latin-1"), ["the file is read as Latin-1: save it as UTF-8"]


def is_taken(node, ours):
    """Functions, classes of lrt.py, imports of what is here, and constants are taken."""
    if isinstance(node, ast.ClassDef):
        return any(name.startswith(node.name + ".") for name in ours)
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [getattr(node, "module", None) or alias.name for alias in node.names]
        return all(importlib.util.find_spec(name.split(".")[0]) for name in names)
    if isinstance(node, (ast.Assign, ast.AnnAssign)):           # but not x.y = ..., x[0] = ...
        return all(isinstance(part, (ast.Name, ast.Tuple)) for part in ast.walk(node)
                   if isinstance(getattr(part, "ctx", None), ast.Store))
    return isinstance(node, ast.FunctionDef) \
        or isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class Student:
    """What is taken of a student's file: its code, its functions, and notes on what is not."""

    def __init__(self, path, ours):
        text, self.notes = read(Path(path))
        try:
            tree = ast.parse(text)
            self.found = definitions(tree)
            taken = [node for node in tree.body if is_taken(node, ours)]
            self.notes += [
                f"line {node.lineno}: {ast.unparse(node).splitlines()[0]!r} is not taken: only "
                "functions, constants, and imports of what is here are"
                for node in tree.body if node not in taken]
            tree.body = taken
            self.code = ast.unparse(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise Refused(f"Python {sys.version_info[0]}.{sys.version_info[1]} cannot read it: "
                          f"{e or type(e).__name__}: mend it, and save it as UTF-8") from e
        if not self.found:
            raise Refused("there is no function in the file: is it empty?")
        exercises = {name for _, names in EXERCISES.values() for name in names}
        self.notes += [f"your change of {name}, which is given, is not taken"
                       for name, node in self.found.items() if name in ours.keys() - exercises
                       and ast.dump(node) != ast.dump(ours[name])]
        self.helpers = [name for name in self.found if "." in name and name not in ours]


# ---- Runs of the tests


class Grader:
    """A folder with all that a run needs, and the names of the tests."""

    def __init__(self, folder, variant="", numbers=tuple(EXERCISES), user=None):
        self.folder, self.numbers, self.user = Path(folder), numbers, user
        texts = edition(variant)
        texts["test_lrt.py"] += MUST_FAIL_TEXT
        write_tests(self.folder, texts)
        shutil.copyfile(HERE / "worker.py", self.folder / "worker.py")
        self.text, self.ours = texts["lrt.py"], definitions(ast.parse(texts["lrt.py"]))
        self.tests, ended = self.run("", [], [], ["--collect-only"])
        if not MUST_FAIL.keys() <= self.tests.keys():
            raise ValueError(f"the tests cannot be run here: {ended}")

    def run(self, code, functions, numbers, options):
        """{name of a test: (outcome, message)} with these functions of the student's code and
        without ours for the exercises `numbers`; and what is to be said if there are no results."""
        job = dict(secret=secrets.token_hex(), code=code, functions=functions, options=options,
                   seconds=TEST_SECONDS)
        env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        user = dict(user=self.user, group=self.user, extra_groups=[]) if self.user else {}
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as out:
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
            write(Path(folder) / "lrt.py", blanked(self.text, numbers))
            os.chmod(folder, 0o755)
            process = subprocess.Popen(
                [sys.executable, "-X", "utf8", "worker.py"], cwd=folder, stdin=subprocess.PIPE,
                stdout=out, stderr=subprocess.DEVNULL, start_new_session=True, **user,
                env=env | {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
            try:
                process.communicate(json.dumps(job).encode() + b"\n", timeout=RUN_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)      # and all that it has started
                except ProcessLookupError:
                    pass
                process.wait()
            out.seek(0)
            _, secret, written = out.read().decode(errors="replace").partition(job["secret"])
        results = json.loads(written) if secret else {"": ("values", ENDED)}
        return results, results.pop("", ("", ""))[1]

    def marks(self, student, numbers):
        """{exercise: (points, what to say)} of a run with these functions of the student."""
        functions = [name for n in numbers for name in EXERCISES[n][1] if name in student.found]
        results, ended = self.run(student.code, functions + student.helpers, numbers,
                                  ["-k", " or ".join(f"test_ex{n}_" for n in [0, *numbers])])
        if not ended and any(results[test][0] != kind for test, kind in MUST_FAIL.items()):
            ended = UNFAIR
        marks = {}
        for n in numbers:
            of, tests = EXERCISES[n][0], [test for test in self.tests if f"test_ex{n}_" in test]
            found = [(test, *results.get(test, ("values", "was not run"))) for test in tests]
            wrong = [(test, kind, said) for test, kind, said in found if kind != "passed"]
            lost = sum(SHARES[kind] for kind in {kind for _, kind, _ in wrong})
            if ended:
                marks[n] = 0, ended
            elif wrong:
                test, kind, said = wrong[0]
                marks[n] = round(of * max(0, 1 - lost), 1), f"{kind}: {test}: {said}"
            else:
                marks[n] = of, f"all {len(tests)} tests pass"
        return marks

    def grade(self, path):
        """[(exercise, points, of, what to say), ...], and notes for the student."""
        marks, notes = {}, []
        try:
            student = Student(path, self.ours)
            notes = student.notes
            for n in self.numbers:
                name = EXERCISES[n][1][0]
                if name not in student.found:
                    marks[n] = 0, f"there is no {name} in the file: write it as in the handout"
            left = [n for n in self.numbers if n not in marks]
            if left:
                marks |= self.marks(student, left)
            for n in left:
                if marks[n][0] < EXERCISES[n][0] and len(left) > 1:
                    marks |= self.marks(student, [n])
        except Refused as e:
            marks = {n: (0, str(e)) for n in self.numbers}
        except Exception as e:                          # one file must not stop the others
            said = f"the grader stopped at this file: {type(e).__name__}: {e}"
            marks = {n: (0, said) for n in self.numbers}
        return [(n, marks[n][0], EXERCISES[n][0], plain(marks[n][1])) for n in self.numbers], notes


# ---- What is printed


def plain(text):
    """In one line of at most 300 characters, without what moves a terminal's cursor."""
    text = " ".join(text.split())[:300]
    return "".join(c if c.isprintable() else "?" for c in text)


def total(marks):
    return round(sum(points for _, points, _, _ in marks), 1)


def report(name, marks, notes):
    lines = [f"{plain(name)}: {total(marks):g} of {sum(of for _, _, of, _ in marks)} points"]
    if len({said for _, _, _, said in marks}) == 1:
        lines += [f"    {marks[0][3]}"]
    else:
        lines += [f"    exercise {n} {EXERCISES[n][1][0]:20} {points:4g} of {of:2}  {said}"
                  for n, points, of, said in marks]
    return "\n".join(lines + [f"    note: {plain(note)}" for note in notes])


def gradescope(name, marks, notes):
    tests = [{"name": f"exercise {n}: {EXERCISES[n][1][0]}", "score": points, "max_score": of,
              "output": said} for n, points, of, said in marks]
    return json.dumps({"score": total(marks), "output": report(name, marks, notes), "tests": tests})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="lrt.py, by any name, or a folder with it")
    add("--variant", default="", help="that of the handout")
    add("--exercises", type=chosen, default=list(EXERCISES), metavar="1-5")
    add("--csv", action="store_true", help="a line for each file")
    add("--json", action="store_true", help="Gradescope's format")
    add("--user", help="run students' code as this user, who can read none of your files")
    args = parser.parse_args(argv)
    table = csv.writer(sys.stdout)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            grader = Grader(folder, args.variant, args.exercises, args.user)
        except ValueError as e:
            sys.exit(f"error: {e}")
        if args.csv:
            table.writerow(["file", *(f"ex{n}" for n in args.exercises), "points", "reasons"])
        for name, (marks, notes) in zip(args.files, pool.map(grader.grade, args.files)):
            if args.csv:
                reasons = [f"{n}: {said}" for n, points, of, said in marks if points < of]
                table.writerow([plain(name), *(points for _, points, _, _ in marks), total(marks),
                                "; ".join(reasons)])
            elif args.json:
                print(gradescope(name, marks, notes))
            else:
                print(report(name, marks, notes))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
