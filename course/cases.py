"""The tests of an exercise, as calls."""
import functools
import inspect
import itertools
import math

import test_lrt
from support.proof import SLOW, TESTS


def cases(number, quick=False):
    """[(name, call)]: each test of an exercise (0: of what is given) with each of its parameters,
    those that take long with the first alone; none of those with a fixture. Quick tests come first,
    and of each test the first parameters, as that finds what is wrong soonest. quick: none that
    take long, and two parameters of each."""
    found = []
    assert test_lrt                     # which has made TESTS what it is
    for test in TESTS.get(number, []):
        names, values = parameters(test)
        if set(inspect.signature(test).parameters) - set(itertools.chain(*names)):
            continue
        for n, combination in enumerate(itertools.product(*values)):
            named = {}
            for part, value in zip(names, combination):
                named.update(zip(part, value if len(part) > 1 else (value,)))
            slow = test in SLOW
            most = 2 if quick else math.inf
            if slow:
                most = 0 if quick else 1
            if n < most:
                found.append((slow, n, test.__name__, functools.partial(test, **named)))
    found.sort(key=lambda case: case[:2])
    return [(name, call) for slow, n, name, call in found]


def parameters(test):
    """The marks of pytest.mark.parametrize: a list of names for each, and a list of values."""
    names, values = [], []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names.append([name.strip() for name in mark.args[0].split(",")])
            values.append(list(mark.args[1]))
    return names, values
