"""The processes of a run: which one am I, and what all of them do together."""
import os
import re
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from threading import Timer

import torch
import torch.distributed
import torch.distributed.nn.functional  # see joined()
from torch.nn.parallel import DistributedDataParallel

from support.script import Unusable, warn

WHOLE_SET = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")   # torchrun sets all
JOIN_SECONDS = 300              # how long one waits for the others to come
TALK_SECONDS = 30 * 60          # and later, for their numbers: the first one evaluates meanwhile


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is; the one of rank 0 prints, evaluates and writes."""
    rank: int = 0
    count: int = 1
    local_rank: int = 0             # among those of this machine

    @property
    def first(self):
        return self.rank == 0

    def sum(self, *numbers):
        """The sums over all processes of these numbers, in the same order, as floats. All have the
        same afterwards, and what they do next may depend on nothing else. Waits for the others."""
        if self.count == 1:
            return [float(n) for n in numbers]
        total = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def wait(self):
        """Until all processes are here."""
        self.sum(0)

    def share(self, model):
        """The model, which begins with the first process' weights everywhere, and whose backward
        pass leaves the mean of all processes' gradients."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model)


def keep_gradients(model):
    """A context in which backward passes of a shared model add to the gradients of this process
    alone: for all micro-batches but the last."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def who_am_i(environment=os.environ):
    """Processes, by what torchrun sets. Clusters and notebooks set some of that by themselves:
    without the whole set this is one process, the first. Raises Unusable if that cannot be what is
    meant."""
    there = [name for name in WHOLE_SET if environment.get(name)]
    missing = [name for name in WHOLE_SET if name not in there]
    if missing:
        several = environment.get("WORLD_SIZE") not in (None, "", "1")
        if several and "RANK" in there:
            raise Unusable(f"{' and '.join(there)} are set, {' and '.join(missing)} not: start "
                           "several processes by torchrun, or unset RANK and WORLD_SIZE")
        return Processes()
    try:
        rank, count, local_rank = (int(environment[name]) for name in WHOLE_SET[:3])
    except ValueError:
        rank, count, local_rank = -1, 0, -1
    if not (0 <= rank < count and 0 <= local_rank):
        said = ", ".join(f"{name}={environment[name]}" for name in WHOLE_SET[:3])
        raise Unusable(f"{said}: no process can be that; unset them, or start by torchrun")
    return Processes(rank, count, local_rank)


def device_name(me, name):
    """Of several processes on CUDA, each takes a GPU of its own. Raises Unusable for devices over
    which processes cannot talk."""
    if me.count == 1:
        return name
    if name in ("", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(me.local_rank)
        return f"cuda:{me.local_rank}"
    if name in ("", "cpu"):
        return "cpu"
    raise Unusable(f"--device={name}: several processes need cpu, or cuda, of which each takes its "
                   "own")


@contextmanager
def joined(me):
    """The group of all processes, while the block lasts. Numbers go over gloo, gradients on GPUs
    over NCCL. Raises Unusable if the others do not come, or if one goes away meanwhile.

    What share() gave has to be gone when the block ends, so have a function make it. The reason is
    how the group's threads end, which is when nothing refers to the group any more. Are they never
    ended, one of them may abort the process in its last moment. Are they ended by a model that is
    the last to refer to it, both may wait for Python's lock for ever. Functions in
    torch.distributed.nn refer to the group that is there when they are imported, as
    DistributedDataParallel does: they are imported above, when there is none."""
    if me.count == 1:
        yield
        return
    join(me)
    try:
        yield
        me.wait()               # who leaves while another still talks ends the other, too
    except RuntimeError as e:
        if is_about_others(e):
            raise Unusable("another process of this run has ended or does not answer; "
                           "what it had saved is there: --resume goes on") from e
        raise
    finally:
        torch.distributed.destroy_process_group()


def join(me):
    """Find the others, within JOIN_SECONDS."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    name = f"process {me.rank} of {me.count}"
    text = f"{name} waits for the others at {where}, {JOIN_SECONDS} s at most"
    patience = Timer(5, warn, [text])
    patience.daemon = True
    patience.start()
    try:
        store, _, _ = next(torch.distributed.rendezvous(
            "env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=me.rank,
                                             world_size=me.count,
                                             timeout=timedelta(seconds=TALK_SECONDS))
    except (RuntimeError, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise Unusable(f"{name} did not find the others at {where} "
                       f"({reason:.100}); alone: unset {' '.join(WHOLE_SET)}") from e
    finally:
        patience.cancel()


def is_about_others(error):
    """Is it about a process that went away? Gloo and NCCL say so in words only."""
    return re.search("gloo|nccl|peer|connection|timed out", str(error), re.IGNORECASE) is not None
