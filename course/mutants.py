"""Wrong versions of lrt.py, each of which test_lrt.py has to reject.

    python course/mutants.py                all of them
    python course/mutants.py GPT.sweep      those of one function

They stand in wrong_versions.py. One of an exercise must be rejected by the tests of its own
exercise. Each is tested in a process of its own, two at a time.
"""
import ast
import multiprocessing
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import lrt
import pytest

from wrong_versions import WRONG

EXERCISES = {
    "shift_right": 1, "Chunk.finish": 2, "Attention.qkv": 3, "GPT.layers": 4, "GPT.step": 5,
    "GPT.sweep": 6, "GPT.forward_parallel": 7, "GPT.prefill": 8, "GPT.forward_hops": 9,
    "implicit_gradient": 9,
}


def wrong_text(function, old, new):
    """lrt.py with `old` replaced in one function. Raises ValueError unless it is there once."""
    text = (HERE.parent / "lrt.py").read_text(encoding="utf-8")
    scope = ast.parse(text).body
    for name in function.split("."):
        node = next(n for n in scope if getattr(n, "name", None) == name)
        scope = getattr(node, "body", [])
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    lines = text.splitlines(keepends=True)
    indent = " " * node.col_offset
    body = "".join(line.removeprefix(indent) for line in lines[first:node.end_lineno])
    if body.count(old) != 1:
        raise ValueError(f"{function}: {old!r} is there {body.count(old)} times, expected once")
    body = body.replace(old, new)
    return "".join([*lines[:first], *(indent + line for line in body.splitlines(keepends=True)),
                    *lines[node.end_lineno:]])


ITEMS, FAILED = [], []      # tests; and, in the process of a version, what failed


def rejected_by(version):
    """In a process of its own: the first test that fails, and what it says, or None."""
    function, _, old, new = version
    exec(compile(wrong_text(function, old, new), "lrt.py", "exec"), vars(lrt))
    for item in ITEMS:
        if function not in EXERCISES or f"ex{EXERCISES[function]}" in item.name:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if FAILED:
                return FAILED[0]
    return None


class Plugin:
    """Of pytest: the tests are collected once, and a process for each version starts from there."""

    def __init__(self, versions):
        self.versions, self.survived = versions, 0

    def pytest_runtestloop(self, session):
        ITEMS[:] = session.items
        with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
            for version, failed in zip(self.versions, pool.imap(rejected_by, self.versions)):
                print("rejected " if failed else "SURVIVED ", *version[:2])
                print(f"          {failed}", flush=True)
                self.survived += not failed
        return True

    def pytest_runtest_logreport(self, report):
        if report.failed:
            said = [line[1:].strip() for line in report.longreprtext.splitlines()
                    if line.startswith("E ")]
            FAILED.append(f"{report.nodeid.split('::')[-1]}: {said[0][:150] if said else ''}")


def main(wanted):
    versions = [(function, *version) for function in WRONG for version in WRONG[function]
                if function in wanted or not wanted]
    for function, what, old, new in versions:
        compile(wrong_text(function, old, new), f"{function}: {what}", "exec")
    plugin, start = Plugin(versions), time.time()
    pytest.main([str(HERE.parent / "test_lrt.py"), "-p", "no:terminal", "-p", "no:cacheprovider",
                 "-s"], plugins=[plugin])
    print(f"{plugin.survived} of {len(versions)} survived ({time.time() - start:.0f} s)")
    return 1 if plugin.survived or not versions else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
