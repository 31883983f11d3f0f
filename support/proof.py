"""How a test of lrt.py fails: in words that say what is wrong, in which head, position or sweep."""
import functools
import itertools
import linecache
import traceback

import numpy as np
import pytest
import torch

# Number of an exercise (0: what is given): its tests; those that take long
TESTS, SLOW = {}, []
STUDENTS = set()        # files that a student may have written

# What compares is saved before other code runs: who changes methods of torch.Tensor, by mistake or
# for fun, changes nothing here.
DETACH, DOUBLE, TO_NUMPY = torch.Tensor.detach, torch.Tensor.double, torch.Tensor.numpy
GRAD = torch.autograd.grad


def exercise(n, slow=False):
    """For a test of exercise n. Whatever goes wrong in it is told in words, with the line of lrt.py
    where it went wrong. slow: a grader runs it with the first of its parameters alone."""
    def decorate(test):
        @functools.wraps(test)
        def told(*args, **named):
            try:
                return test(*args, **named)
            except Exception as e:
                message = told_of(e)
            pytest.fail(message, pytrace=False)
        TESTS.setdefault(n, []).append(told)
        if slow:
            SLOW.append(told)
        return told
    return decorate


def told_of(e):
    """An exception in a line: what it says, and the last line of lrt.py on the way to it."""
    said = " ".join(str(e).split())[:300]
    if isinstance(e, NotImplementedError):
        return f"not written yet: {said}"
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(e.__traceback__)]
    theirs = [(code, line) for code, line in frames if code.co_filename in STUDENTS]
    ours = [(code, line) for code, line in frames if code.co_filename.endswith("test_lrt.py")]
    code, line = (theirs or ours or frames)[-1]
    where = getattr(code, "co_qualname", code.co_name)
    text = linecache.getline(code.co_filename, line).strip()
    how = "in" if theirs else "what came back does not fit the test, in"
    return f"{type(e).__name__}: {said}\n    {how} {where}, line {line}: {text}"


def check(ok, message):
    if not ok:
        pytest.fail(message, pytrace=False)


def array(x):
    """The numbers of a tensor, or what is one already, for numpy, whose methods nobody changes."""
    return TO_NUMPY(DOUBLE(DETACH(x))) if isinstance(x, torch.Tensor) else np.asarray(x)


def distance(a, b):
    """The largest difference of two tensors."""
    return float(abs(array(a) - array(b)).max())


def same(a, b):
    return tuple(a.shape) == tuple(b.shape) and bool((array(a) == array(b)).all())


def unchanged(tensors, copies, what="the inputs were"):
    check(all(same(a, b) for a, b in zip(tensors, copies)), f"{what} changed in place")


def close(mine, expected, what="the result", axes=(), atol=1e-10):
    """Fails, naming the first value that differs, unless both are alike. axes: names of the
    dimensions."""
    check(type(mine) in (torch.Tensor, torch.nn.Parameter),
          f"{what}: expected a tensor, not {type(mine).__name__}")
    mine, expected = array(mine), array(expected)
    check(mine.shape == expected.shape, f"{what}: shape is {mine.shape}, expected {expected.shape}")
    off = abs(mine - expected)
    wrong = ~(off <= atol)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0].tolist())
        named = itertools.zip_longest(axes, at, fillvalue="number")
        place = ", ".join(f"{axis} {i}" for axis, i in named) or "the only place"
        check(False, f"{what}: first wrong value at {place}: {mine[at]:.12g}, expected "
                     f"{expected[at]:.12g}; {wrong.sum()} of {wrong.size} are wrong, by up to "
                     f"{off.max():.3g}")


ROWS, THERE = ("row", "number"), ("row", "position", "number")
HEADS = ("row", "head", "position", "number")


def gradients(value, named, keep=False):
    """{name: gradient of value, or None}, for named tensors. keep: the graph, for another time."""
    grads = GRAD(value, list(named.values()), retain_graph=keep, allow_unused=True)
    return dict(zip(named, grads))


def close_gradients(mine, expected, what):
    """Two of gradients(); None is 0."""
    for name, right in expected.items():
        if right is None:
            close(torch.zeros(1) if mine[name] is None else mine[name].abs().max()[None], [0.0],
                  f"{what}: gradient of {name}")
        else:
            check(mine[name] is not None,
                  f"{what}: no gradient reaches {name}: is something detached?")
            close(mine[name], right, f"{what}: gradient of {name}")


def slopes(f, named, what):
    """The gradients of f() -> () against finite differences, all together along a random direction.
    If they differ, one by one, so that the first wrong one has a name. named: tensors that f uses.
    """
    named = dict(named)
    before, rng = {n: p.detach().clone() for n, p in named.items()}, np.random.RandomState(3)
    ways = {n: torch.from_numpy(np.asarray(rng.randn(*p.shape))) for n, p in named.items()}
    value = f()
    check(value.requires_grad,
          f"{what}: no gradient at all: is everything detached, or under no_grad?")
    grads = gradients(value, named)

    def compare(names):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for n in names:
                    named[n].copy_(before[n] + sign * 1e-6 * ways[n])
                ends.append(float(array(f())))
                for n in names:
                    named[n].copy_(before[n])
        slope = (ends[0] - ends[1]) / 2e-6
        mine = sum((array(grads[n]) * array(ways[n])).sum() for n in names if grads[n] is not None)
        return mine, slope, abs(mine - slope) <= 1e-6 * (1 + abs(slope))

    if compare(list(named))[2]:
        return
    for n in named:
        mine, slope, right = compare([n])
        check(right or mine, f"{what}: no gradient reaches {n}: is something detached?")
        check(right, f"{what}: the gradient of {n} is wrong: {mine:.8g} along a direction in which "
                     f"the slope is {slope:.8g}. Is a part of the way detached?")
    check(False, f"{what}: the gradients are wrong")


def refuses(call, what):
    """call() must raise ValueError, of its own accord."""
    try:
        call()
    except ValueError as e:
        check(str(e), f"{what}: the ValueError does not say what is impossible, and why")
    except Exception as e:
        check(False, f"{what}: must raise ValueError, raised {told_of(e)}")
    else:
        check(False, f"{what}: must raise ValueError")
