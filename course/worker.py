"""Run the tests of some exercises in this process. grade.py starts it in a folder with lrt.py and
test_lrt.py; a line of JSON on standard input says what to do.

Each result is a line on standard output that begins with a secret, which students' code is not
told. What students' code prints is thrown away.
"""
import json
import os
import re
import sys


def limit_resources(memory, seconds):
    try:
        import resource
    except ImportError:                                         # Windows
        return
    for name, most in (("DATA", memory), ("CPU", seconds), ("FSIZE", 2 ** 20), ("CORE", 0)):
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(number, (most, most))


class Results:
    """A plugin of pytest: it chooses tests, and writes what became of each: passed, skipped, or
    what is wrong."""

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
        items.extend(last)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and not report.failed:
            self.tell(report.nodeid.partition("::")[2], report.outcome)

    def pytest_exception_interact(self, node, call, report):    # "": not even imported
        name = node.name if hasattr(node, "function") else ""
        self.tell(name, kind_of(node.name, call.excinfo), message_of(report))


def kind_of(test, excinfo):
    """What a test shows to be wrong, by its name and by the statement of it that failed. Tests look
    at values first, so a statement about gradients is reached if the values are right."""
    try:
        entry = next(e for e in excinfo.traceback if e.path.name == "test_lrt.py")
        statement, before = str(entry.statement), str(entry.frame.code.fullsource[entry.lineno - 1])
    except Exception:
        return "values"
    if re.search("refuse|raises|meta|device|dtype|in place|unchanged", test + statement) \
            or "pytest.raises" in before:
        return "robustness"
    return "gradients" if re.search("grad|slopes", test + statement) else "values"


def message_of(report):
    """An error, which may be of any kind, in a line."""
    try:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = crash.message if crash else str(report.longrepr).strip().splitlines()[-1]
        return " ".join(said.removeprefix("E ").strip().removeprefix("Failed: ").split())[:500]
    except Exception:
        return "an error that cannot be shown"


def main(secret, exercises, collect, memory, seconds):
    limit_resources(memory, seconds)
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    import pytest
    plugin = Results(secret, exercises, collect, stream)
    pytest.main(["test_lrt.py", "test_must_fail.py", "-c", "pytest.ini", "--rootdir=.", "-q", "-s",
                 "--noconftest", "-p", "no:cacheprovider", "-p", "no:faulthandler"],
                plugins=[plugin])


if __name__ == "__main__":
    main(**json.loads(sys.stdin.readline()))
