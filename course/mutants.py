"""Wrong versions of lrt.py, and which tests reject them:  python course/mutants.py"""
import functools
import inspect
import itertools
import sys
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import lrt
from course.exercises import EXERCISES
from course.wrong import MUTANTS
from test_lrt import KNOWN, SLOW, TESTS, known


def owner_of(function, module=None):
    """("GPT.refine") -> the class (or module) it belongs to, and its name there."""
    *path, name = function.split(".")
    return functools.reduce(getattr, path, module or lrt), name


def changed(function, *texts):
    """A function of lrt.py with some of its text changed: right, wrong, right, wrong ..."""
    owner, name = owner_of(function)
    source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))
    for right, wrong in zip(texts[::2], texts[1::2]):
        assert source.count(right) == 1, f"{function} has {source.count(right)} places {right!r}"
        source = source.replace(right, wrong)
    return defined(source, name)


def defined(source, name):
    namespace = {}
    exec(compile(textwrap.dedent(source), "<changed>", "exec"), vars(lrt), namespace)
    return namespace[name]


def cases(tests, quick=False):
    """The name and a call of each test with each of its parameters; none of those with a fixture. Quick
    tests come first, and of each test the first parameters, as that finds what is wrong soonest."""
    found = []
    for test in tests:
        marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        names = [[name.strip() for name in args[0].split(",")] for args in marks]
        if set(inspect.signature(test).parameters) - {name for part in names for name in part}:
            continue
        for n, chosen in enumerate(itertools.product(*(args[1] for args in marks))):
            values = [value if len(part) > 1 else (value,) for part, value in zip(names, chosen)]
            named = {name: v for part, value in zip(names, values) for name, v in zip(part, value)}
            found.append((test in SLOW, n, test.__name__, functools.partial(test, **named)))
    found = [case for case in found if not quick or not case[0] and case[1] < 2]
    return [(name, call) for _, _, name, call in sorted(found, key=lambda case: case[:2])]


def killed_by(function, new, first_only=True, quick=False):
    """Names of the tests that fail with a function of lrt.py replaced, and what the first one says. Of an
    exercise only its own tests are run. quick: none that take long, and each with two parameters at most."""
    for which in KNOWN:
        known(*which)                                       # now, while all is right
    numbers_of = {name: n for n, (name, *_) in enumerate(EXERCISES, 1)}
    tests = TESTS[numbers_of[function]] if function in numbers_of else sum((TESTS[n] for n in range(9)), [])
    killers, said = [], ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*owner_of(function), new)
        for name, test in cases(tests, quick):
            try:
                test()
            except pytest.fail.Exception as e:
                said = said or str(e)
                killers.append(name)
                if first_only:
                    break
    return list(dict.fromkeys(killers)), said


if __name__ == "__main__":
    survived = 0
    for mutant in MUTANTS:
        killers, said = killed_by(mutant[1], changed(*mutant[1:]))
        print(f"{'rejected' if killers else 'SURVIVED'}  {mutant[1]}: {mutant[0]}")
        print(f"          {killers[0]}: {said}" if killers else "", flush=True)
        survived += not killers
    sys.exit(f"{survived} of {len(MUTANTS)} survived" if survived else 0)
