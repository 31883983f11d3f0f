"""Run tests on a student's code. grade.py starts this in a folder that has lrt.py, without what the
student has to write, and test_lrt.py. A line of JSON on standard input says what to do.

The student's code is not told the secret, which begins the line of results on standard output. What
it prints is thrown away.
"""
import json
import os
import re
import resource
import signal
import sys

import torch
import pytest

LIMITS = {"DATA": 2 ** 31, "CPU": 90, "FSIZE": 2 ** 20, "CORE": 0}     # bytes, seconds
ROBUSTNESS = "refuse|raises|impossible|meta|device|in place|unchanged"


def too_long(*_):
    pytest.fail("this takes too long: is there an endless loop?")


def limit():
    signal.signal(signal.SIGALRM, too_long)
    for name, most in LIMITS.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))


def install(code, functions):
    """Put a student's functions, such as "shift_right" and "GPT.sweep", into lrt.py. They keep
    their own helpers and imports; for all names that lrt.py has, they see those of lrt.py."""
    torch.compiler.disable = lambda function: function      # which takes seconds to be imported
    import lrt
    student = dict(vars(lrt))
    exec(code, student)
    for name in functions:
        owner, _, function = name.rpartition(".")
        if owner:
            setattr(getattr(lrt, owner), function, vars(student[owner])[function])
        else:
            setattr(lrt, function, student[function])
    student.update(vars(lrt))


class Results:
    """A plugin of pytest: {name of a test: ("passed" or what is wrong, message)}. After a wrong
    value no exercise is tested any more, since then nothing else counts."""

    def __init__(self, seconds):
        self.found, self.wrong, self.seconds = {}, False, seconds

    def pytest_itemcollected(self, item):
        self.found[item.name] = "values", "was not run"

    def pytest_runtest_setup(self, item):
        signal.alarm(self.seconds)
        if self.wrong and "_ex0_" not in item.name:
            pytest.skip()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.found[report.location[2]] = "passed", ""

    def pytest_exception_interact(self, node, call, report):
        kind = kind_of(node.name, call.excinfo)
        self.found[node.name] = kind, call.excinfo.exconly()
        self.wrong = self.wrong or kind == "values"


def kind_of(test, excinfo):
    """What is wrong, by the test's name and by its statement that failed."""
    for entry in excinfo.traceback:
        if entry.path.name == "test_lrt.py":
            statement = test + str(entry.statement)
            before = str(entry.frame.code.fullsource[entry.lineno - 1])
            if "raises" in before or re.search(ROBUSTNESS, statement):
                return "robustness"
            return "gradients" if re.search("grad|slopes", statement) else "values"
    return "values"


def main(secret, code, functions, options, seconds):
    out = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    limit()
    results = Results(seconds)
    signal.alarm(seconds)
    try:
        install(code, functions)
    except BaseException as e:
        results.found[""] = "values", f"{type(e).__name__}: {e}"
    else:
        pytest.main(["test_lrt.py", *options, "-s", "-c", os.devnull, "--rootdir=.", "--noconftest",
                     "-p", "no:cacheprovider", "-p", "no:faulthandler"], plugins=[results])
    out.write(secret + json.dumps(results.found))
    out.flush()


if __name__ == "__main__":
    main(**json.loads(sys.stdin.readline()))
