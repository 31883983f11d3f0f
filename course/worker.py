"""Run tests of some exercises in this process. grade.py starts it in a folder with lrt.py and
test_lrt.py; a line of JSON on standard input says what to do.

Each result is a line on standard output that begins with a secret, which students' code is not
told. What students' code prints is thrown away.
"""
import json
import os
import re
import sys

JOB = json.loads(sys.stdin.readline())
MUST_FAIL = '''"""The last tests of each run. If one of them passes, no result counts."""
import torch
import test_lrt


def test_must_fail_equal():
    assert torch.zeros(2).equal(torch.ones(2))


def test_must_fail_close():
    test_lrt.close(torch.zeros(2).double(), torch.ones(2).double(), "zeros")


def test_must_fail_refuses():
    test_lrt.refuses(lambda: None, "nothing")


def test_must_fail_gradients():
    x = torch.ones(2).double().requires_grad_()
    test_lrt.check_gradients(lambda: x.detach() * x, dict(x=x))
'''


def limit_resources(memory, seconds):
    try:
        import resource
    except ImportError:                                         # Windows
        return
    for name, most in (("DATA", memory), ("CPU", seconds), ("FSIZE", 2 ** 20), ("CORE", 0)):
        hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


class Results:
    """A plugin of pytest: chooses tests, and writes what became of each."""

    def __init__(self, secret, exercises, collect, stream):
        self.choice = re.compile(f"test_ex({'|'.join(map(str, exercises))})_")
        self.collect = collect

        def tell(name, outcome, message=""):
            stream.write(json.dumps([secret, name, outcome, message]) + "\n")
            stream.flush()

        self.tell = tell

    def pytest_collection_modifyitems(self, items):
        last = [item for item in items if item.name.startswith("test_must_fail_")]
        items[:] = [item for item in items if self.choice.match(item.name)]
        if self.collect:
            for item in items:
                self.tell(item.name, "collected")
            items.clear()
        else:
            items.extend(last)

    def pytest_collectreport(self, report):
        if report.failed:
            self.tell("", "broken", self.message(report))

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.tell(report.nodeid.partition("::")[2], report.outcome,
                      "" if report.passed else self.message(report))

    def message(self, report):
        """One line of an error, which may be of any kind."""
        try:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = crash.message if crash else str(report.longrepr).strip().splitlines()[-1]
            return " ".join(said.removeprefix("Failed: ").split())[:500]
        except Exception:
            return "an error that cannot be shown"


def main():
    global JOB
    job, JOB = JOB, None
    limit_resources(job["memory"], job["seconds"])
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    import pytest
    with open("test_must_fail.py", "w") as file:
        file.write(MUST_FAIL)
    plugin = Results(job["secret"], job["exercises"], job["collect"], stream)
    pytest.main(["test_lrt.py", "test_must_fail.py", "-c", "pytest.ini", "--rootdir=.", "-q", "-s",
                 "--noconftest", "-p", "no:cacheprovider", "-p", "no:faulthandler"],
                plugins=[plugin])


if __name__ == "__main__":
    main()
