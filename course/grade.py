"""Points for students' lrt.py files:  python course/grade.py FILE ...

Of each file one function at a time is put into our lrt.py, and the tests of its exercise are run,
in a process of its own. One that is missing or wrong costs its points and no others. A line, or a
report, is printed as soon as a file is done; what is printed stays when you stop it (Ctrl-C).
"""
import argparse
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
from course import worker
from course.cases import cases
from course.exercises import EXERCISES, checked, chosen, points_of
from support.script import Unusable, fail, say, script

FORKS = sys.platform == "linux"         # a copy of this process, with torch in it, is there at once

# Seconds are those of computing, where the system can count them: other programs do not matter
# then. What waits and computes nothing is stopped after four times as many.
OUT_OF_TIME = getattr(signal, "SIGXCPU", None) or -1
WAITS = 4 if hasattr(signal, "SIGXCPU") else 1


@dataclass
class Mark:
    """What a file gets for one exercise."""
    number: int
    function: str
    points: int
    of: int
    said: str           # why: one line


# ---- A process that grades one exercise of one file

class Forked:
    """A copy of this process. Where torch's libraries can be copied: on Linux."""
    def __init__(self, path, number, result, limit):
        self.pid, self.status = os.fork(), None
        if self.pid == 0:
            try:
                os.setsid()
                nowhere = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(nowhere, stream)
                os.chdir(os.path.dirname(result))
                worker.work(path, number, result, limit)
            finally:
                os._exit(0)

    def ended(self):
        """The exit status, below 0 for a signal; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def kill(self):
        kill_group(self.pid)
        while self.ended() is None:
            time.sleep(0.001)


class Started:
    """A new Python."""
    def __init__(self, path, number, result, limit):
        words = [sys.executable, str(HERE / "course" / "worker.py"), path, str(number), result,
                 str(limit)]
        nothing = subprocess.DEVNULL
        self.process = subprocess.Popen(words, cwd=os.path.dirname(result), stdin=nothing,
                                        stdout=nothing, stderr=nothing, start_new_session=True)

    def ended(self):
        return self.process.poll()

    def kill(self):
        if os.name == "posix":
            kill_group(self.process.pid)
        self.process.kill()
        self.process.wait()


def kill_group(pid):
    """A process, and all that it has started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:                         # none of them is left, or it has not come so far
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


class Task:
    """An exercise of a file, being graded."""
    def __init__(self, path, exercise, limit, folder, forks):
        self.exercise, self.limit = exercise, limit
        self.result = str(Path(folder) / f"{os.urandom(8).hex()}.json")
        kind = Forked if forks else Started
        self.child = kind(os.path.abspath(path), exercise.number, self.result, limit)
        self.end = time.monotonic() + limit * WAITS

    def mark(self):
        """The Mark, when it is done or its time is over; else None."""
        status = self.child.ended()
        if status is None and time.monotonic() < self.end:
            return None
        self.child.kill()
        points, said = self.verdict(status)
        return Mark(self.exercise.number, self.exercise.function, points, self.exercise.points,
                    one_line(said))

    def verdict(self, status):
        """Points, and why."""
        if status is None or status == -OUT_OF_TIME:
            return 0, f"not done after {self.limit:g} s: an endless loop?"
        try:
            found = json.loads(Path(self.result).read_text(encoding="utf-8"))
            passed, said = int(found["passed"]), str(found["said"])
        except (OSError, ValueError, KeyError, TypeError):
            how = f" (by signal {-status})" if status < 0 else ""
            return 0, f"the process ended before the tests did{how}"
        expected = len(cases(self.exercise.number))
        if passed == expected and not said:
            return self.exercise.points, f"all {expected} tests pass"
        if not passed:
            return 0, said or "no test has passed"
        return 0, f"{passed} of {expected} tests pass; {said}"


def one_line(text, most=500):
    """Without what moves a terminal's cursor, or breaks a table."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", text).strip()
    return text[:most] or "no reason was given"


# ---- Many files

def graded(paths, table, limit=30, jobs=1, forks=FORKS):
    """Yields (path, [Mark, ...]) as soon as a file is done, in any order. `jobs` at a time."""
    waiting = deque((place, exercise) for place in range(len(paths)) for exercise in table.values())
    marks, running = {place: [] for place in range(len(paths))}, []
    if forks:
        worker.warm_up()
    with tempfile.TemporaryDirectory(prefix="grade-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    place, exercise = waiting.popleft()
                    running.append((place, Task(paths[place], exercise, limit, folder, forks)))
                done = []
                for place, task in running:
                    mark = task.mark()
                    if mark:
                        marks[place].append(mark)
                        done.append((place, task))
                running = [pair for pair in running if pair not in done]
                for place in dict.fromkeys(place for place, task in done):
                    if len(marks[place]) == len(table):
                        yield paths[place], sorted(marks[place], key=lambda mark: mark.number)
                if not done:
                    time.sleep(0.005)
        finally:
            for place, task in running:
                task.child.kill()


# ---- What is printed

def name_shown(path):
    """A file's name in a line: a name may have a line break, or bytes that are no text."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "?", str(path))


def alike(marks):
    """Whether there is one reason for everything: a file that cannot be read."""
    return not any(mark.points for mark in marks) and len({mark.said for mark in marks}) == 1


def report(path, marks):
    """A text for people."""
    points, most = sum(mark.points for mark in marks), sum(mark.of for mark in marks)
    lines = [f"{name_shown(path)}: {points} of {most} points"]
    if alike(marks):
        return lines[0] + f"\n    {marks[0].said}\n"
    for mark in marks:
        of = f"{mark.points:2} of {mark.of:2}"
        lines.append(f"    exercise {mark.number}  {mark.function:17} {of}   {mark.said}")
    return "\n".join(lines) + "\n"


def gradescope(path, marks):
    """One submission in Gradescope's format."""
    points, most = sum(mark.points for mark in marks), sum(mark.of for mark in marks)
    tests = []
    for mark in marks:
        status = "passed" if mark.points else "failed"
        tests.append({"name": f"exercise {mark.number}: {mark.function}", "score": mark.points,
                      "max_score": mark.of, "status": status, "output": mark.said})
    return {"score": points, "output": f"{name_shown(path)}: {points} of {most} points",
            "tests": tests}


def csv_line(cells):
    """A line of a table. A cell that a spreadsheet would take for a formula is text."""
    safe = []
    for cell in cells:
        cell = name_shown(cell)
        if cell[:1] in "=+-@" and cell:
            cell = "'" + cell
        safe.append(cell)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(safe)
    return line.getvalue()


def csv_header(table):
    return csv_line(["file", *(f"ex{n}" for n in table), "points", "of", "reasons"])


def csv_row(path, marks):
    points, most = sum(mark.points for mark in marks), sum(mark.of for mark in marks)
    reasons = "; ".join(f"{mark.number}: {mark.said}" for mark in marks if not mark.points)
    if alike(marks):
        reasons = marks[0].said
    return csv_line([path, *(mark.points for mark in marks), points, most, reasons])


def common_folder(paths):
    """The folder that all are in: no part of the names of texts for students."""
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    except ValueError:                      # on several drives; or a name with a zero byte
        return ""


def write_feedback(folder, path, within, marks, taken):
    """A text for the student, in a file that bears the name of theirs, as seen from the folder
    `within`. taken: names there are."""
    name = os.path.abspath(path).removeprefix(within) if within else path
    name = re.sub(r"[^\w.-]+", "_", name_shown(name)).strip("._")[-150:] or "file"
    number = 1
    while (unique := name + (f"-{number}" if number > 1 else "")) in taken:
        number += 1
    taken.add(unique)
    Path(folder, unique + ".txt").write_text(report(path, marks), encoding="utf-8")


# ---- The command

def options(argv):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message}; -h lists the options")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--csv", action="store_true",
                        help="a line for each file, for a spreadsheet")
    parser.add_argument("--json", action="store_true",
                        help="Gradescope's format; a list, if there are several files")
    parser.add_argument("--feedback", metavar="DIR",
                        help="a text for each student, into this folder")
    parser.add_argument("--exercises", metavar="1-5",
                        help="these alone; the maximum is theirs (default: all of the table)")
    parser.add_argument("--jobs", type=int, metavar="N", default=os.cpu_count() or 1,
                        help="how many processes at a time (default: as many as there are cores)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", default=30,
                        help="for an exercise of a file; more on a slow machine (default: 30)")
    given = parser.parse_args(argv)
    if given.jobs < 1 or not 0 < given.limit < 10 ** 6:
        raise Unusable("--jobs and --limit must be more than 0")
    if given.csv and given.json:
        raise Unusable("--csv or --json, not both")
    return given


@script
def main(argv):
    given, table = options(argv), checked(EXERCISES)
    if given.exercises is not None:
        table = chosen(given.exercises, table)
    if given.feedback is not None:
        Path(given.feedback).mkdir(parents=True, exist_ok=True)
        if any(Path(given.feedback).iterdir()):
            raise Unusable(f"--feedback={given.feedback}: there is something in it, which stays as "
                           "it is; name an empty folder, or a new one")
        within = common_folder(given.files)
    count, names = 0, set()
    several = given.json and len(given.files) > 1
    if given.csv:
        say(csv_header(table))
    if several:
        say("[", end="")
    try:
        for path, marks in graded(given.files, table, given.limit, given.jobs):
            count += 1
            if given.feedback is not None:
                write_feedback(given.feedback, path, within, marks, names)
            if given.csv:
                say(csv_row(path, marks))
            elif given.json:
                say(("," if count > 1 else "") + json.dumps(gradescope(path, marks), indent=1))
            else:
                say(report(path, marks), end="")
    finally:
        if several:
            say("]")
    if len(given.files) > 1 and not (given.csv or given.json):
        say(f"{count} files, {points_of(table)} points each at most")


if __name__ == "__main__":
    main()
