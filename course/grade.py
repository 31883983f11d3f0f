"""Points for students' lrt.py files:  python course/grade.py FILE ... [--json] [--csv] [--limit=SECONDS]"""
import ast
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
import lrt
import test_lrt
from course.exercises import EXERCISES
from course.handout import definitions
from course.mutants import cases, owner_of
from test_lrt import TESTS

ALLOWED = {"torch", "math", "functools", "itertools", "operator", "typing", "collections", "dataclasses",
           "contextlib", "copy", "numpy", "__future__"}
FORBIDDEN = {"os", "sys", "subprocess", "importlib", "builtins", "inspect", "gc", "ctypes", "pytest",
             "test_lrt", "_exit", "exit", "quit", "open", "eval",
             "exec", "compile", "__import__", "__builtins__", "__globals__", "__subclasses__", "__code__",
             "modules", "globals", "vars"}


class Refused(Exception):
    pass


def students_part(path, name):
    """[(qualified name, node)] of a student's file: the function, and what it uses of functions, methods,
    imports and constants at the top of that file that lrt.py does not have. Nothing else of the file is
    looked at, and none of it is run."""
    try:
        data = Path(path).read_bytes()
        if len(data) > 10 ** 6:
            raise Refused(f"the file has {len(data):,} bytes: too many")
        found = definitions(data.decode("utf-8-sig"))
    except OSError as e:
        raise Refused(f"cannot be read: {e.strerror}")
    except UnicodeDecodeError:
        raise Refused("is not text in UTF-8")
    except SyntaxError as e:
        raise Refused(f"syntax error in line {e.lineno}: {e.msg}")
    except (ValueError, RecursionError, MemoryError) as e:
        raise Refused(f"is not Python: {e}")
    if not isinstance(found.get(name), ast.FunctionDef):
        raise Refused(f"there is no function {name} in the file")
    ours, wanted, taken = definitions((HERE / "lrt.py").read_text(encoding="utf-8")), [name], {}
    while wanted:
        part = wanted.pop()
        taken[part] = found[part]
        for node in ast.walk(found[part]):
            used = [node.id] if isinstance(node, ast.Name) else []
            if isinstance(node, ast.Attribute):
                used = [f"{owner}.{node.attr}" for owner in ("Cache", "Block", "GPT")]
            wanted += [u for u in used if u in found and u not in ours and u not in taken]
            bad = {getattr(node, "id", ""), getattr(node, "attr", "")} & FORBIDDEN
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            bad |= {module for module in modules if module.split(".")[0] not in ALLOWED}
            if isinstance(node, ast.ImportFrom):
                bad |= {a.name for a in node.names} & FORBIDDEN
            if bad:
                raise Refused(f"uses {', '.join(sorted(bad))} (line {node.lineno}), which no exercise needs")
    if any(isinstance(n, ast.Raise) and "NotImplementedError" in ast.unparse(n) for n in found[name].body):
        raise Refused("not written yet")
    return sorted(taken.items(), key=lambda item: item[1].lineno)


def take_over(path, name):
    """Puts a student's function into lrt, in the place of its own."""
    path = str(path)
    test_lrt.STUDENTS.add(path)
    for part, node in students_part(path, name):
        namespace = vars(lrt)
        exec(compile(ast.Module([node], []), path, "exec"), namespace, made := {})
        for key, value in made.items():
            if "." in part:
                setattr(*owner_of(part), value)
            else:
                namespace[key] = value


def grade_exercise(path, n, limit=30):
    """(points, what to say about it) of exercise n of a student's file."""
    name, points, *_ = EXERCISES[n - 1]
    try:
        students_part(path, name)
    except Refused as e:
        return 0, str(e)
    expected = len(cases(TESTS[n]))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        tests = Path(folder, "test_of_one.py")
        tests.write_text(f"from course.grade import take_over\ntake_over({str(Path(path).resolve())!r}, {name!r})\n"
                         "from test_lrt import *\n", encoding="utf-8")
        child = subprocess.Popen([sys.executable, "-m", "pytest", str(tests), "-q", "-s", "-k", f"test_ex{n}_",
                                  "-p", "no:cacheprovider", "--assert=plain",
                                  f"--junitxml={report}", "-W", "ignore"], cwd=folder,
                                 env={**env, "PYTHONPATH": str(HERE)}, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            return 0, f"not done after {limit} s: an endless loop?"
        finally:
            if os.name == "posix":
                try:
                    os.killpg(child.pid, signal.SIGKILL)        # it, and what it has started
                except OSError:
                    pass
            child.kill()
            child.wait()
        try:
            ran = list(xml.etree.ElementTree.parse(report).iter("testcase"))
        except (OSError, xml.etree.ElementTree.ParseError):
            return 0, "the process ended before the tests did"
    failed = [(case.get("name"), " ".join((case[0].text or case[0].get("message") or "").split()))
              for case in ran if len(case)]
    passed = len(ran) - len(failed)
    if failed:
        return 0, f"{passed} of {expected} tests pass; {failed[0][0]}: {failed[0][1]}"[:500]
    if passed < expected or passed != len(ran):
        return 0, f"{passed} of {expected} tests were run"
    return points, f"all {expected} tests pass"


def grade(path, limit=30, exercises=range(1, len(EXERCISES) + 1)):
    """One submission: [(number, function, points, of how many, what to say)]."""
    return [(n, EXERCISES[n - 1][0], *(p := grade_exercise(path, n, limit))[:1], EXERCISES[n - 1][1], p[1])
            for n in exercises]


def grade_files(paths, form="", limit=30):
    """Prints the report: for people, as Gradescope's results.json (a list of them for several files), or a
    line of CSV each."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    say = lambda text: re.sub(r"[^\x20-\x7e]" if plain else r"[\x00-\x1f\x7f]", "?", text)
    total, results = sum(e[1] for e in EXERCISES), []
    if form == "csv":
        print("file," + ",".join(f"ex{n}" for n in range(1, len(EXERCISES) + 1)) + ",points,of", flush=True)
    for path in paths:
        rows = grade(path, limit)
        points = sum(row[2] for row in rows)
        if form == "json":
            results.append({"score": points, "output": say(f"{path}: {points} of {total} points"), "tests": [
                {"name": f"exercise {n}: {name}", "score": got, "max_score": of, "status": "passed" if got
                 else "failed", "output": said}
                for n, name, got, of, said in rows]})
        elif form == "csv":
            quoted = '"' + str(path).replace('"', '""') + '"'
            print(say(",".join([quoted, *(str(row[2]) for row in rows), str(points), str(total)])),
                  flush=True)
        else:
            print(say(f"{path}: {points} of {total} points"))
            if not points and len({row[4] for row in rows}) == 1:
                rows = [(0, "the file", 0, total, rows[0][4])]
            for n, name, got, of, said in rows:
                print(say(f"    {f'exercise {n}' if n else '':11} {name:14} {got:2} of {of:2}   {said}"),
                      flush=True)
    if form == "json":
        print(json.dumps(results[0] if len(results) == 1 else results, indent=1))


if __name__ == "__main__":
    flags = dict(arg.partition("=")[::2] for arg in sys.argv[1:] if arg.startswith("--"))
    names = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    if not names or set(flags) - {"--json", "--csv", "--limit"}:
        sys.exit(__doc__)
    form = "json" if "--json" in flags else "csv" if "--csv" in flags else ""
    grade_files(names, form, float(flags.get("--limit", 30)))
