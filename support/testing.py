"""What the tests of the scripts share."""
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sample

HERE = Path(__file__).parent.parent
torch.set_num_threads(1)


TEXT = "".join(f"SPEAKER {i % 7}:\nThe {i * 37 % 101} words of line {i}, naïvely counted — "
               f"{'lo ' * (i % 5)}end.\n\n" for i in range(120))


class Server:
    """What urlopen returns; without data, what it does with no network."""
    def __init__(self, data): self.data = data
    def __call__(self, url, timeout):
        if self.data is None:
            raise OSError("no network")
        return io.BytesIO(self.data)


SMALL_TASK = ("--dataset=parity --n_layer=1 --n_head=2 --n_embd=48 --batch_size=32 "
              "--eval_interval=20 --device=cpu --lrt=1").split()


SMALL = ("--dataset=mine --block_size=16 --n_layer=1 --n_head=2 --n_embd=16 --batch_size=4 "
         "--max_iters=6 --eval_interval=3 --log_interval=2 --device=cpu").split()


def once(args):
    """A command line in which flags of SMALL or SMALL_TASK are overridden by later ones: a script
    takes each of them once."""
    overridden = {flag.split("=")[0] for flag in SMALL + SMALL_TASK}
    kept = []
    for n, arg in enumerate(args):
        name = str(arg).split("=")[0]
        later = [str(other).split("=")[0] for other in args[n + 1:]]
        if not (name in overridden and name in later):
            kept.append(arg)
    return kept


def run(module, *args):
    """A script's main() in this process; its exit status. It gives back what it took. A sample has
    20 tokens unless it is told otherwise: most runs here end with one, and 500 take long."""
    print_samples = sample.print_samples
    def print_short_samples(argv):
        if not any(str(arg).startswith("--max_new_tokens") for arg in argv):
            argv = [*argv, "--max_new_tokens=20"]
        print_samples(argv)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "print_samples", print_short_samples)
        try:
            module.main(once(args))
        except SystemExit as e:
            return e.code
    return 0


def rows(folder):
    """Of the log of a run."""
    log = Path(folder, "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in log.splitlines()]


def weights(folder):
    return torch.load(Path(folder, "last.pt"), weights_only=True)["model"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def all_files():
    """{path: bytes} of all files here and below, but for locks."""
    return {path: path.read_bytes() for path in sorted(Path(".").rglob("*"))
            if path.is_file() and path.name != ".lock"}


def ends_in_one_line(module, args, capsys):
    """Runs a script that must refuse: exit status 2, one line. Returns the line."""
    capsys.readouterr()
    status, err = run(module, *args), capsys.readouterr().err
    assert status == 2, (args, status, err)
    assert err.startswith("error: ") and err.count("\n") == 1, (args, err)
    return err


def torchrun(*args):
    """Two processes; a hang is an error."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    env["PYTHONIOENCODING"] = "utf-8"
    return subprocess.run([*launcher, *once(args)], capture_output=True, text=True,
                          encoding="utf-8", timeout=120, env=env)
