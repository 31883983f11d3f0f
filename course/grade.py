"""Points for students' files:

    python course/grade.py FILE ... [--variant=NAME] [--exercises=1-5] [--csv] [--json]
                                    [--feedback=DIR] [--log-budget=SECONDS] [--user=NAME]

A student's functions are put into our lrt.py, and our test_lrt.py is run on them. First, all
exercises are run at once. Then each that failed is run on its own, in an lrt.py of ours that is
otherwise complete: so an exercise that is wrong or missing costs its own points and no others.
"""
import argparse
import ast
import csv
import importlib.util
import io
import json
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from handout import EXERCISES, blanked, chosen, definitions
from variants import ROOT, new_folder, write, write_with_known_numbers

SHARES = {"gradients": 0.2, "robustness": 0.1}      # of an exercise's points; values: the rest
TEST_SECONDS, RUN_SECONDS = 60, 300         # without a result; CPU time of a run
MUST_FAIL = 5                               # so many tests in must_fail.py
MEMORY = 4 * 2 ** 30                        # bytes that a run may have
OTHER_FILES = {"test_lrt.py", "train.py", "sample.py", "prepare_data.py"}


class Refused(Exception):
    """Nothing of a file can be graded. The message says what the student should do."""


# ---- A student's file

def read(path):
    """The text of lrt.py, which may be in a folder, or have another name, and notes about it."""
    try:
        if path.is_dir():
            files = [p for p in path.rglob("*.py") if "__MACOSX" not in p.parts]
            files = [p for p in files if p.name == "lrt.py"] \
                or [p for p in files if p.name not in OTHER_FILES]
            if len(files) != 1:
                raise Refused(f"the folder has {len(files)} files that may be it: hand in one file "
                              "lrt.py")
            path = files[0]
        if not path.is_file() or path.stat().st_size > 10 ** 6:
            raise Refused("hand in one file lrt.py, of less than 1 MB")
        data = path.read_bytes()
    except (OSError, ValueError) as e:
        raise Refused(f"the file cannot be read ({e}): hand it in again") from e
    if b"\0" in data:
        raise Refused("the file has zero bytes, as in UTF-16: save it as plain text, in UTF-8")
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        return data.decode(encoding), []
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return data.decode("latin-1"), ["the file is not UTF-8, and was read as Latin-1: save it "
                                        "as UTF-8"]


def bound_names(node):
    """Names that a function, an import, or a plain constant gives a meaning to; else None."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    parts = [part for target in targets if isinstance(target, (ast.Name, ast.Tuple))
             for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value and parts \
            and all(isinstance(part, ast.Name) for part in parts):
        return [part.id for part in parts]
    return None


def used_names(nodes):
    return {getattr(n, "id", getattr(n, "attr", "")) for node in nodes for n in ast.walk(node)
            if isinstance(n, (ast.Name, ast.Attribute))}


def is_blank(node):
    last = node.body[-1]
    return len(node.body) <= 2 and isinstance(last, ast.Raise) \
        and "NotImplementedError" in ast.unparse(last)


class Student:
    """What is taken of a student's file: functions of exercises, new methods, and of the functions,
    constants and imports at module level those that are used. Raises Refused."""

    def __init__(self, path, ours):
        self.ours = ours                                # the text of our lrt.py
        text, self.notes = read(Path(path))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.tree = ast.parse(text)
                ast.unparse(self.tree)
        except SyntaxError as e:
            raise Refused(f"line {e.lineno}: {e.msg}: mend it so that Python "
                          f"{sys.version_info[0]}.{sys.version_info[1]} can read it") from e
        except (ValueError, RecursionError, MemoryError) as e:
            raise Refused(f"this is not Python that can be read ({type(e).__name__}): hand in "
                          "lrt.py as plain text") from e
        if not self.tree.body:
            raise Refused("the file is empty: hand in lrt.py")
        self.found = definitions(self.tree)
        tree = ast.parse(ours)
        self.our_functions = definitions(tree)
        self.our_classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        self.our_names = self.our_classes | {name for node in tree.body
                                             for name in bound_names(node) or []}
        self.look_at_the_rest()

    def look_at_the_rest(self):
        """Notes about what is not taken."""
        exercises = {name for _, names in EXERCISES.values() for name in names}
        for name, node in self.found.items():
            ours = self.our_functions.get(name)
            if ours and name not in exercises and ast.dump(ours) != ast.dump(node):
                self.notes.append(f"line {node.lineno}: your change of {name}, which is given, is "
                                  "not taken")
        for node in self.tree.body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(node, ast.ClassDef) and node.name in self.our_classes or is_text:
                continue
            if bound_names(node) is None:
                what = ast.unparse(node).splitlines()[0][:60]
                self.notes.append(f"line {node.lineno}: {what!r} is not taken: at module level "
                                  "only functions, constants and imports are")
            elif isinstance(node, ast.Import):
                for name in (alias.name.split(".")[0] for alias in node.names):
                    if name != "lrt" and not importlib.util.find_spec(name):
                        self.notes.append(f"line {node.lineno}: there is no {name} where this is "
                                          "graded: do without it")

    def state_of(self, number):
        """None if there is something to grade, else why not."""
        name = EXERCISES[number][1][0]
        if name not in self.found:
            return f"there is no function {name} in the file: write it where the handout has it"
        return "not written yet" if is_blank(self.found[name]) else None

    def put_into_ours(self, numbers):
        """The text of our lrt.py with the student's functions of these exercises."""
        names = [name for n in numbers for name in EXERCISES[n][1] if name in self.found]
        top, parts, methods = self.with_helpers([(name, self.found[name]) for name in names])
        text = blanked(self.ours, numbers)
        end = ast.parse(text).body[0].end_lineno                # of the docstring
        lines = text.splitlines()
        return "\n".join(lines[:end] + top + lines[end:] + [""] + parts + methods) + "\n"

    def with_helpers(self, functions):
        """Three lists of code: for the top of the file, for its end, and for its classes."""
        taken = [node for _, node in functions]
        others = [node for node in self.tree.body if bound_names(node) is not None]
        others += [node for name, node in self.found.items() if "." in name
                   and name not in self.our_functions and name.split(".")[0] in self.our_classes]
        while True:
            used = used_names(taken)
            new = [node for node in others if node not in taken
                   and used & (set(bound_names(node)) - self.our_names | {"*"})
                   | set(bound_names(node)) & {"*", "annotations"}]
            if not new:
                break
            taken += new
        top, parts, methods = [], [], []
        for node in self.tree.body:
            if node in taken and isinstance(node, ast.ImportFrom) and node.module == "__future__":
                top.insert(0, ast.unparse(node))
            elif node in taken and isinstance(node, ast.ImportFrom) and node.module == "lrt":
                parts += [f"{alias.asname} = {alias.name}" for alias in node.names if alias.asname]
            elif node in taken and isinstance(node, (ast.Import, ast.ImportFrom)):
                top += ["try:", "    " + ast.unparse(node), "except ImportError:", "    pass"]
            elif node in taken and self.found.get(getattr(node, "name", ""), node) is node:
                parts.append(ast.unparse(node))
        for name, node in self.found.items():
            owner, _, method = name.rpartition(".")
            if node in taken and owner:
                code = ast.unparse(ast.ClassDef(f"_{owner}", [], [], [node], [], type_params=[]))
                methods += [code, f"{owner}.{method} = vars(_{owner})[{method!r}]"]
        return top, parts, methods


# ---- Runs of the tests

class Grader:
    """Folders and processes. Use it in a with statement."""

    def __init__(self, variant, numbers, user=None):
        self.numbers, self.user, self.running, self.stopped = numbers, user, set(), False
        self.scratch = tempfile.TemporaryDirectory(prefix="grade-")
        self.base = Path(self.scratch.name) / "base"
        self.base.mkdir()
        os.chmod(self.scratch.name, 0o755)
        self.ours = write_with_known_numbers(self.base, variant)["lrt.py"]
        for source, name in (("must_fail.py", "test_must_fail.py"), ("worker.py", "worker.py")):
            shutil.copyfile(ROOT / "course" / source, self.base / name)
        write(self.base / "pytest.ini", "[pytest]\n")
        results, ended = self.run(self.base, numbers, collect=True)
        self.tests = {n: [name for name, (outcome, _) in results.items()
                          if outcome == "collected" and name.startswith(f"test_ex{n}_")]
                      for n in numbers}
        if not all(self.tests.values()):
            raise ValueError(f"our own tests cannot be run here: {ended or results}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped = True
        for process in list(self.running):
            kill(process)
        self.scratch.cleanup()

    def run(self, folder, numbers, collect=False):
        """{name of a test: (outcome, message)}, and how the process ended if not as it should."""
        if self.stopped:
            raise InterruptedError("stopped")
        secret = secrets.token_hex(16)
        job = {"secret": secret, "exercises": numbers, "collect": collect, "memory": MEMORY,
               "seconds": RUN_SECONDS}
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        env |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        options = {}
        if self.user:
            import pwd                                          # POSIX only
            options = dict(user=self.user, group=pwd.getpwnam(self.user).pw_gid, extra_groups=[])
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-X", "utf8", "worker.py"], cwd=folder, env=env,
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL,
                start_new_session=True, **options)
            self.running.add(process)
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.close()
            size, quiet, whole, ended = 0, 0.0, 0.0, ""     # seconds that are slept here: none
            while process.poll() is None and not ended:     # pass while the machine is suspended
                time.sleep(0.05)
                new_size = os.fstat(output.fileno()).st_size
                quiet, whole = quiet + 0.05 if new_size == size else 0.0, whole + 0.05
                size = new_size
                if quiet > TEST_SECONDS or whole > 4 * RUN_SECONDS:
                    ended = f"a test takes more than {TEST_SECONDS} s: is there an endless loop?"
            kill(process)
            self.running.discard(process)
            output.seek(0)
            lines = output.read(2 ** 21).decode(errors="replace").splitlines()
        results = {}
        for line in lines:
            if line.startswith(f'["{secret}"'):
                _, name, outcome, message = json.loads(line)
                results.setdefault(name, (outcome, message))
        judged = [outcome for name, (outcome, _) in results.items() if "must_fail" in name]
        if not ended and "" not in results:                     # "": the file cannot be imported
            if process.returncode or len(judged) != MUST_FAIL:
                ended = "the process ended before the tests did: does your code exit, or take " \
                        "too much memory or time?"
            elif "passed" in judged:
                ended = "a test that must fail passed after your code ran: change nothing of " \
                        "torch, pytest or the tests"
        return results, ended

    def results_of(self, student, numbers):
        """Of a run with the student's functions of these exercises."""
        with tempfile.TemporaryDirectory(dir=self.scratch.name) as folder:
            folder = Path(folder)
            shutil.copytree(self.base, folder, dirs_exist_ok=True)
            write(folder / "lrt.py", student.put_into_ours(numbers))
            os.chmod(folder, 0o755)
            return self.run(folder, numbers)

    def grade(self, path):
        """[(number, points, of, what to say), ...], and notes for the student."""
        try:
            student = Student(path, self.ours)
        except Refused as e:
            return [(n, 0, EXERCISES[n][0], str(e)) for n in self.numbers], []
        marks = {n: (0, reason) for n in self.numbers if (reason := student.state_of(n))}
        left = [n for n in self.numbers if n not in marks]
        for _ in range(2):                  # all at once; again without the first that fails
            if len(left) < 2:
                break
            results, ended = self.results_of(student, left)
            if ended:
                break
            now = {n: self.mark(n, results) for n in left}
            marks |= {n: mark for n, mark in now.items() if mark[0] == EXERCISES[n][0]}
            left = [n for n in left if n not in marks]
            if left:
                marks[left[0]] = self.mark(left[0], *self.results_of(student, left[:1]))
                left = left[1:]
        for n in left:
            marks[n] = self.mark(n, *self.results_of(student, [n]))
        return [(n, marks[n][0], EXERCISES[n][0], marks[n][1]) for n in self.numbers], \
            list(dict.fromkeys(student.notes))

    def mark(self, number, results, ended=""):
        """Points of an exercise, and why. Without right values, the rest shows nothing."""
        tests, of = self.tests[number], EXERCISES[number][0]
        bad = [name for name in tests if results.get(name, ("", ""))[0] != "passed"]
        if ended or "" in results:
            return 0, ended or results[""][1]
        if not bad:
            return of, f"all {len(tests)} tests pass"
        said = [results.get(name, ("values", "was not run")) for name in bad]
        lost = {kind if kind in SHARES else "values" for kind, _ in said}
        points = 0 if "values" in lost else round(of * (1 - sum(SHARES[k] for k in lost)), 1)
        return points, (f"{len(bad)} of {len(tests)} tests fail ({', '.join(sorted(lost))}); "
                        f"{bad[0]}: {said[0][1]}")


def kill(process):
    """A process, and all that it has started."""
    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except OSError:
        pass
    process.wait()


# ---- What is printed

def plain(text):
    """In one line, without what moves a terminal's cursor."""
    return re.sub(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\uffff]+", " ", str(text)).strip()


def report(name, marks, notes):
    lines = [f"{name}: {total(marks):g} of {sum(mark[2] for mark in marks)} points"]
    if len({said for *_, said in marks}) == 1 and total(marks) == 0:
        return "\n".join(lines + [f"    {plain(marks[0][3])}"])
    lines += [f"    exercise {n} {EXERCISES[n][1][0]:20} {points:4g} of {of:2}  {plain(said)}"
              for n, points, of, said in marks]
    return "\n".join(lines + [f"    note: {plain(note)}" for note in notes[:10]])


def total(marks):
    return round(sum(points for _, points, _, _ in marks), 1)


def csv_line(cells):
    """A cell that a spreadsheet would take for a formula becomes text."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(
        "'" + cell if cell[:1] in set("=+-@") else cell for cell in map(plain, cells))
    return line.getvalue()


def gradescope(name, marks, notes, best):
    tests = [{"name": f"exercise {n}: {EXERCISES[n][1][0]}", "score": points, "max_score": of,
              "status": "passed" if points == of else "failed", "output": plain(said)}
             for n, points, of, said in marks]
    found = {"score": total(marks), "output": report(name, marks, notes), "tests": tests}
    if best is not None:
        found["leaderboard"] = [{"name": "exact loss", "value": best, "order": "asc"}]
    return found


def best_exact(path, budget):
    """The best exact loss in a handed-in log.jsonl, within so many seconds of training, or None.
    Its rows are the student's word."""
    best, seconds, step = math.inf, 0.0, 0
    try:
        for line in next(Path(path).rglob("log.jsonl")).read_text().splitlines():
            row = json.loads(line)
            if "seconds" in row:
                seconds += row["seconds"] * (row["step"] - step)
                step = row["step"]
            if seconds <= budget and 0 < row.get("exact", -1) < best:
                best = row["exact"]
    except (OSError, StopIteration, ValueError, LookupError, TypeError, AttributeError,
            RecursionError):
        return None
    return best if math.isfinite(best) else None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="lrt.py, by any name, or a folder with it")
    add("--variant", default="", help="that of the handout")
    add("--exercises", default=f"1-{max(EXERCISES)}", metavar="1-5")
    add("--csv", action="store_true", help="a line for each file")
    add("--json", action="store_true", help="Gradescope's format; several files: a list")
    add("--feedback", metavar="DIR", help="a text for each student, into a new folder")
    add("--log-budget", type=float, default=600, metavar="SECONDS",
        help="leaderboard: best exact loss in log.jsonl within so much training (default: 600)")
    add("--jobs", type=int, default=os.cpu_count(), help="files at a time (default: all cores)")
    add("--user", help="run students' code as this user, who can read none of your files")
    args = parser.parse_args(argv)
    try:
        if args.user:
            os.umask(0o022)
        numbers = chosen(args.exercises)
        feedback = args.feedback and new_folder(args.feedback)
        with ThreadPoolExecutor(max(1, args.jobs)) as pool, \
                Grader(args.variant, numbers, args.user) as grader:
            if args.csv:
                print(csv_line(["file", *(f"ex{n}" for n in numbers), "points", "of", "reasons"]))
            found = []
            try:
                for place, (marks, notes) in enumerate(pool.map(grader.grade, args.files), 1):
                    name = plain(args.files[place - 1])
                    text = report(name, marks, notes)
                    if feedback:
                        short = re.sub(r"[^\w.-]+", "_", name)[-80:]
                        write(feedback / f"{place:03}-{short}.txt", text + "\n")
                    if args.csv:
                        reasons = "; ".join(f"{n}: {said}" for n, points, of, said in marks
                                            if points < of)
                        print(csv_line([name, *(f"{points:g}" for _, points, _, _ in marks),
                                        total(marks), sum(m[2] for m in marks), reasons]),
                              flush=True)
                    elif args.json:
                        found.append(gradescope(name, marks, notes, best_exact(
                            args.files[place - 1], args.log_budget)))
                    else:
                        print(text, flush=True)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            if args.json:
                print(json.dumps(found[0] if len(found) == 1 else found, indent=1))
    except (OSError, ValueError, KeyError) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
