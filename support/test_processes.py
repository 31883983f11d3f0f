"""Several processes."""
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import prepare_data
import train
from support import processes
from support.processes import Processes, device_name, who_am_i
from support.script import Unusable
from support.testing import HERE, SMALL, all_files, ends_in_one_line, once, rows, run, torchrun

WHOLE_SET = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost",
             "MASTER_PORT": "29500"}


@pytest.fixture
def mine(here):
    """A working folder with text.txt and data/mine."""
    prepare_data.prepare("mine", "char", "text.txt")
    return here


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def start_two(*args):
    """Two processes as torchrun would start them, but without torchrun, which ends all when one
    ends."""
    port, started = free_port(), []
    for rank in ("0", "1"):
        environment = {**os.environ, **WHOLE_SET, "RANK": rank, "LOCAL_RANK": rank,
                       "WORLD_SIZE": "2", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
                       "PYTHONPATH": str(HERE)}
        started.append(subprocess.Popen([sys.executable, *once(args)], env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return started


# ---- Who am I?

@pytest.mark.parametrize("there", [
    {}, {"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "x"},
    {"MASTER_ADDR": "x", "MASTER_PORT": "1"}, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": ""}])
def test_without_the_whole_set_it_is_one_process_the_first(there):
    assert who_am_i(there) == Processes(0, 1, 0)


def test_the_whole_set_says_which_process_it_is():
    assert who_am_i(WHOLE_SET) == Processes(rank=1, count=4, local_rank=1)
    assert who_am_i({**WHOLE_SET, "RANK": "0", "WORLD_SIZE": "1"}) == Processes(0, 1, 1)


@pytest.mark.parametrize("change, named", [
    ({"RANK": "4"}, "RANK=4"), ({"RANK": "-1"}, "RANK=-1"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x"), ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK=1.5"),
    ({"MASTER_ADDR": ""}, "MASTER_ADDR"), ({"LOCAL_RANK": "", "MASTER_PORT": ""}, "MASTER_PORT")])
def test_half_a_set_and_nonsense_are_refused(change, named):
    with pytest.raises(Unusable, match=named):
        who_am_i({**WHOLE_SET, **change})


@pytest.mark.parametrize("name, taken", [("", "cpu"), ("cpu", "cpu"), ("mps", None),
                                         ("cuda:0", None)])
def test_device_of_one_of_several(monkeypatch, name, taken):
    """Gloo takes no tensors of other devices, and a GPU is for one process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_name(Processes(), name) == name
    if taken:
        assert device_name(Processes(1, 2, 1), name) == taken
    else:
        with pytest.raises(Unusable, match=name):
            device_name(Processes(1, 2, 1), name)


def test_each_takes_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("", "cuda"):
        assert device_name(Processes(5, 8, 1), name) == "cuda:1"
    assert chosen == [1, 1]
    assert device_name(Processes(5, 8, 1), "cpu") == "cpu"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_stale_set_deletes_nothing_and_ends_in_one_line(mine, capsys, monkeypatch, rank):
    """The others do not come, so nothing is claimed. Afterwards it is one process again."""
    assert run(train, *SMALL) == 0
    before = all_files()
    stale = {**WHOLE_SET, "RANK": rank, "WORLD_SIZE": "2", "MASTER_PORT": free_port()}
    with monkeypatch.context() as patched:
        patched.setattr(processes, "JOIN_SECONDS", 1)
        for name, value in stale.items():
            patched.setenv(name, value)
        err = ends_in_one_line(train, [*SMALL, "--overwrite=1"], capsys)
        assert "did not find the others" in err and "unset RANK WORLD_SIZE" in err
        assert all_files() == before and not torch.distributed.is_initialized()
        patched.setenv("RANK", "7")
        assert "RANK=7" in ends_in_one_line(train, [*SMALL, "--overwrite=1"], capsys)
    assert all_files() == before
    assert run(train, *SMALL, "--overwrite=1") == 0


# ---- Together

def test_two_processes_are_one_with_twice_the_batch(mine):
    """Or with two batches whose gradients are added up."""
    flags = [*SMALL, "--lrt=1"]
    assert run(train, *flags, "--batch_size=8", "--out_dir=one") == 0
    done = torchrun(HERE / "train.py", *flags, "--batch_size=2", "--gradient_accumulation_steps=2",
                    "--out_dir=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("100%") == 1                          # only the first process prints
    one, two = rows("one"), rows("two")
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
    for a, b in zip(one, two):
        for key in ("train_loss", "val_loss", "val_loss_exact", "flops"):
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-5), key


UNLIKE = """
import gc, os, torch, train, weakref
from torch.nn.parallel import DistributedDataParallel

def model(config, GPT=train.GPT):           # the second machine has weights of its own
    groups.append(weakref.ref(torch.distributed.group.WORLD))
    model = GPT(config)
    with torch.no_grad():
        model.embed.weight += int(os.environ["RANK"])
    models.append(model)
    return model

def destroy(destroy=torch.distributed.destroy_process_group):
    print("shared models left:", sum(type(x) is DistributedDataParallel for x in gc.get_objects()))
    destroy()

groups, models, train.GPT = [], [], model
torch.distributed.destroy_process_group = destroy
train.main()
print("the group is", "left" if groups[0]() else "gone")
print("ends with", sum(p.double().sum().item() for p in models[0].parameters()))
"""


@pytest.mark.parametrize("flags", [["--lrt_hops=2"], ["--lrt_mode=sequential"]])
def test_all_begin_with_the_first_ones_weights_and_stay_together(mine, flags):
    Path("unlike.py").write_text(UNLIKE, encoding="utf-8")
    started = start_two("unlike.py", *SMALL, "--lrt=1", *flags)
    outs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outs
    ends = [out.splitlines()[-1] for out, err in outs]
    assert ends[0].startswith("ends with") and ends[0] == ends[1]
    for out, err in outs:                       # as joined() says, or now and then one hangs
        assert "shared models left: 0" in out and "the group is gone" in out


STOPPED = """
import os, signal, train
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


def test_all_processes_stop_after_the_same_step(mine):
    """Process 1 is told just after step 10 was agreed on; process 0 as it begins step 11: both stop
    after that."""
    Path("stopped.py").write_text(STOPPED, encoding="utf-8")
    done = torchrun("stopped.py", *SMALL, "--max_iters=40", "--eval_interval=40")
    assert done.returncode and 'train.py", line' not in done.stderr
    assert done.stdout.count("ends with 130") == 2
    assert done.stdout.count("stopped after step 11; go on with: torchrun") == 1
    assert torch.load("out/last.pt", weights_only=True)["iter"] == 11


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="not on this system")
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_the_other_ends_in_one_line(mine, killed):
    started = start_two(HERE / "train.py", *SMALL, "--lrt=1", "--max_iters=100000")
    for _ in range(600):
        if Path("out/log.jsonl").exists() and rows("out"):
            break
        time.sleep(0.1)
    started[killed].kill()
    other = started[1 - killed]
    err = other.communicate(timeout=60)[1]
    started[killed].communicate()
    assert other.returncode == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "another process of this run has ended" in errors[0]
    assert "Traceback" not in err
    assert torch.load("out/last.pt", weights_only=True)["iter"] > 0
