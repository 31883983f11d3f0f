"""The last tests of each run of the grader. If one of them passes, or does not run, then students'
code has changed how tests are judged, and no result of the run counts."""
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
