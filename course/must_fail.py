"""The last tests of each run of the grader. If one of them passes, or does not run, then students'
code has changed how tests are judged, and no result of the run counts."""
import pytest
import torch

import test_lrt

ZEROS, ONES = torch.zeros(2).double(), torch.ones(2).double()


def test_must_fail_assert():
    assert ZEROS.equal(ONES)


def test_must_fail_assert_close():
    torch.testing.assert_close(ZEROS, ONES)


def test_must_fail_close():
    test_lrt.close(ZEROS, ONES, "zeros")


def test_must_fail_raises():
    with pytest.raises(ValueError):
        pass


def test_must_fail_gradients():
    torch.autograd.gradcheck(lambda x: x.detach() * x, (ONES.clone().requires_grad_(),))
