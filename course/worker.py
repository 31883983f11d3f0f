"""The tests of one exercise on one file, in a process of its own.

    python course/worker.py FILE N RESULT SECONDS

Writes RESULT, in JSON: {"passed": how many tests have passed, "said": what the first one that fails
says}. grade.py starts it, and reads that.
"""
import gc
import json
import math
import os
import sys
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[threads] = "1"               # as many files are graded at a time as there are cores
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

from course.cases import cases
from course.exercises import NUMBERS
from course.submission import Refused, Watch, take_over
from support.proof import TESTS
from support.tiny import all_known

MEMORY, FILE_SIZE = 6 * 2 ** 30, 2 ** 20    # bytes that a student's code may have


def warm_up():
    """Let torch load what it loads when it is first needed: before the processes are made, that is
    once, and before Watch looks at what there is."""
    x = torch.empty(2, 3, device="meta", requires_grad=True)
    torch.cat([torch.zeros_like(x), x])[:, 1:].sum().backward()
    all_known()
    gc.freeze()                             # what there is now is not looked at again and again


def work(path, number, result, limit):
    """Grade an exercise of a file, in this process. limit: seconds of computing."""
    limit_resources(limit)
    found = tried(path, number)
    text = json.dumps({**found, "said": found["said"][:2000]})
    Path(result + ".tmp").write_text(text, encoding="utf-8")
    os.replace(result + ".tmp", result)


def tried(path, number):
    """{"passed": ..., "said": ...}, whatever the student's code does, short of ending the
    process. Of the tests that fail the one that comes first in test_lrt.py has its say: those are
    in an order that goes from what is simple to what is not."""
    function = {n: name for name, n in NUMBERS.items()}[number]
    in_file = [test.__name__ for test in TESTS[number]]
    passed, failed = 0, []
    try:
        take_over(path, function)
        watch = Watch()
    except Refused as e:
        return {"passed": 0, "said": str(e)}
    except BaseException as e:
        return {"passed": 0, "said": f"at the top of the file: {type(e).__name__}: {e}"}
    for name, test in cases(number):
        try:
            test()
            passed += 1
        except BaseException as e:          # of pytest's own, and SystemExit, too
            failed.append((in_file.index(name), name, in_a_line(e)))
            if not passed and "not written yet" in failed[-1][2]:
                return {"passed": 0, "said": "not written yet"}
    changed = watch.change()
    if changed:
        return {"passed": 0, "said": f"has changed {changed}: what is torch's, lrt's or the tests' "
                                     "may be used, not changed"}
    _, name, said = min(failed, key=lambda failure: failure[0], default=(0, "", ""))
    return {"passed": passed, "said": f"{name}: {said}" if failed else ""}


def in_a_line(error):
    """What an exception of any kind says; one that a student has made may not even say that."""
    try:
        said = " ".join(str(error).split())
        return said if type(error).__name__ == "Failed" else f"{type(error).__name__}: {said}"
    except BaseException:
        return "an exception that cannot be shown"


def limit_resources(seconds):
    """A program that takes all memory, or fills the disk, harms itself. (Not on Windows.)"""
    try:
        import resource
    except ImportError:
        return
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    for what, most in {"RLIMIT_DATA": MEMORY, "RLIMIT_FSIZE": FILE_SIZE, "RLIMIT_CORE": 0,
                       "RLIMIT_CPU": math.ceil(used + seconds)}.items():
        try:                            # at the second of two limits of time it is killed at once
            hard = most + 5 if what == "RLIMIT_CPU" else most
            resource.setrlimit(getattr(resource, what), (most, hard))
        except (AttributeError, ValueError, OSError):
            pass                            # a system without it, or a limit that is lower already


if __name__ == "__main__":
    warm_up()
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
