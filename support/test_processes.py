"""Several processes."""
from pathlib import Path

import pytest
import torch

import prepare_data
import train
from support.testing import HERE, SMALL, run, rows, torchrun


def test_two_processes_are_one_with_twice_the_batch(here):
    prepare_data.prepare("mine", "char", "text.txt")
    flags = [*SMALL, "--lrt=1"]
    assert run(train, *flags, "--batch_size=8", "--out_dir=one") == 0
    done = torchrun(HERE / "train.py", *flags, "--batch_size=4", "--out_dir=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("100%") == 1                          # only the first process prints
    one, two = rows("one"), rows("two")
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
    for a, b in zip(one, two):
        for key in ("train_loss", "val_loss", "val_loss_exact", "flops"):
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-5), key


STOPPED = """
import os, signal, sys, train
from support.processes import Processes

rank = int(os.environ["RANK"])
steps = [0]

def counted(run, rate, take_step=train.take_step):
    result = take_step(run, rate)
    steps[0] = run.step
    return result

def after_sum(processes, *numbers, sum=Processes.sum):
    result = sum(processes, *numbers)
    if rank == 1 and steps[0] == 10 and len(numbers) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return result

def after_batch(*args, batch=train.batch):
    result = batch(*args)
    if rank == 0 and steps[0] == 10:
        os.kill(os.getpid(), signal.SIGINT)
    return result

train.take_step, Processes.sum, train.batch = counted, after_sum, after_batch
try:
    train.main()
except SystemExit as e:         # torchrun need not hear of the second one
    print(f"ends with {e.code}", flush=True)
    raise
"""


def test_all_processes_stop_after_the_same_step(here):
    """Process 1 is told just after step 10 was agreed on; process 0 as it begins step 11: both stop after that."""
    prepare_data.prepare("mine", "char", "text.txt")
    Path("stopped.py").write_text(STOPPED, encoding="utf-8")
    done = torchrun("stopped.py", *SMALL, "--max_iters=40", "--eval_interval=40")
    assert done.returncode and 'train.py", line' not in done.stderr and done.stdout.count("ends with 130") == 2
    assert done.stdout.count("stopped after step 11; go on with: torchrun") == 1
    assert torch.load("out/last.pt", weights_only=True)["iter"] == 11
