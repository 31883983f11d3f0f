"""What people type and what files hold: one line when it is wrong, and nothing lost."""
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import sample
import train
from support.script import Unusable
from support.testing import SMALL, SMALL_TASK, all_files, ends_in_one_line, run


# ---- A folder in which much is broken

class Evil:
    """What would open a file when it is loaded."""
    def __reduce__(self):
        return (open, ("evil_was_here", "w"))


def broken_dataset(name, source, change):
    """data/name: data/source, with its files and its meta.json changed by change(folder, meta)."""
    folder = Path("data", name)
    shutil.copytree(Path("data", source), folder)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    change(folder, meta)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def cut_train(folder, meta):
    os.truncate(folder / "train.bin", 100)


def add_a_byte(folder, meta):
    with open(folder / "val.bin", "ab") as f:
        f.write(b"x")


def tokens_of_no_codec(folder, meta):
    (folder / "train.bin").write_bytes(b"\xff" * 2 * meta["train_tokens"])


def codec_of_another_kind(folder, meta):
    meta["codec"]["kind"] = "pickle"


def pattern_of_ones_own(folder, meta):
    meta["codec"] = {"kind": "bpe", "pattern": "(a+)+$", "tokens": []}


def few_targets(folder, meta):
    meta["val_y_tokens"] = 8
    os.truncate(folder / "val_y.bin", 16)


def break_datasets():
    Path("data/broken").mkdir()
    Path("data/broken/meta.json").write_text("{", encoding="utf-8")
    broken_dataset("short", "mine", cut_train)
    broken_dataset("odd", "mine", add_a_byte)
    broken_dataset("beyond", "mine", tokens_of_no_codec)
    broken_dataset("other_codec", "mine", codec_of_another_kind)
    broken_dataset("own_pattern", "mine", pattern_of_ones_own)
    broken_dataset("few_targets", "parity", few_targets)


def break_runs():
    whole = Path("run/best.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for name in ("pickled", "truncated", "flipped", "foreign", "only_best", "infinite"):
        Path(name).mkdir()
    Path("truncated/best.pt").write_bytes(whole[:-100])
    Path("flipped/best.pt").write_bytes(flipped)
    torch.save(Evil(), "pickled/best.pt")
    shutil.copy("run/best.pt", "only_best/best.pt")
    saved = torch.load("run/best.pt", weights_only=True)
    other = torch.load("task/best.pt", weights_only=True)
    torch.save({**saved, "config": other["config"]}, "foreign/best.pt")
    saved["model"]["embed.weight"].fill_(float("nan"))
    torch.save(saved, "infinite/best.pt")
    for name in ("pickled", "foreign", "infinite"):
        shutil.copy(f"{name}/best.pt", f"{name}/last.pt")


@pytest.fixture(scope="module")
def broken(runs, tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("broken"), os.getcwd()
    shutil.copytree(runs, folder, dirs_exist_ok=True)
    os.chdir(folder)
    try:
        Path("empty.txt").touch()
        Path("latin1.txt").write_bytes("naïve".encode("latin-1"))
        break_datasets()
        break_runs()
    finally:
        os.chdir(before)
    return folder


# ---- What is typed

BAD_INPUT = [       # (script, flags, what the line must name)
    (train, ["--lrt=1", "--n_layers=3"], "n_layers"),
    (train, ["--n_embd=10"], "n_embd"),
    (train, ["--n_head=3"], "head"),
    (train, ["--dropout=1"], "dropout"),
    (train, ["--lrt=2"], "--lrt"),
    (train, ["--block_size=0"], "block_size"),
    (train, ["--block_size=100000"], "block_size"),
    (train, ["--batch_size=0"], "--batch_size"),
    (train, ["--lrt=1", "--lrt_memory_layer=9"], "memory_layer"),
    (train, ["--lrt=1", "--lrt_memory_proj=none"], "memory_proj"),
    (train, ["--lrt=1", "--lrt_subsets=17"], "lrt_subsets"),
    (train, ["--lrt=1", "--lrt_subsets=0"], "lrt_subsets"),
    (train, ["--lrt=1", "--lrt_sweeps=0"], "lrt_sweeps"),
    (train, ["--lrt=1", "--lrt_loss_weights=1,2,3"], "lrt_loss_weights"),
    (train, ["--lrt=1", "--lrt_loss_weights=a,b"], "lrt_loss_weights"),
    (train, ["--lrt=1", "--lrt_loss_weights=1,inf"], "lrt_loss_weights"),
    (train, ["--lrt_mode=exact"], "lrt_mode"),
    (train, ["--lrt=1", "--lrt_mode=sequential", "--lrt_subsets=4"], "lrt_subsets"),
    (train, ["--lrt_sweeps=2"], "--lrt=1"),
    (train, ["--learning_rate=-1"], "learning_rate"),
    (train, ["--learning_rate=nan"], "learning_rate"),
    (train, ["--curriculum=4:10,8"], "curriculum"),
    (train, ["--lrt=1", "--lrt_subsets=3", "--block_size=-4"],
     "--block_size=-4: must be a whole number"),
    (train, ["--n_embd=" + "1" * 30], "--n_embd"),
    (train, ["--max_iters=1.5"], "max_iters"),
    (train, ["--max_flops=inf"], "max_flops"),
    (train, ["--max_flops=10"], "max_flops"),
    (train, ["--seed=-1"], "--seed"),
    (train, ["--seed=99999999999999999999"], "--seed"),
    (train, ["--seed=1", "--seed=2"], "--seed is given 2 times"),
    (train, ["--dtype=float16"], "--dtype"),
    (train, ["--device=gpu"], "--device"),
    (train, ["--device=meta"], "--device"),
    (train, ["--curriculum=4"], "curriculum"),
    (train, ["--curriculum=0:5"], "curriculum"),
    (train, ["--dataset=unknown"], "--dataset"),
    (train, ["--dataset=../mine"], "--dataset"),
    (train, ["--dataset=/mine"], "--dataset"),
    (train, ["--dataset="], "--dataset"),
    (train, ["--dataset=parity", "--block_size=4"], "block_size"),
    (train, ["--dataset=broken"], "broken"),
    (train, ["--dataset=short"], "train.bin"),
    (train, ["--dataset=odd"], "val.bin"),
    (train, ["--dataset=beyond"], "train.bin"),
    (train, ["--dataset=other_codec"], "other_codec"),
    (train, ["--dataset=own_pattern"], "own_pattern"),
    (train, ["--dataset=few_targets"], "few_targets"),
    (train, ["--out_dir=text.txt"], "out_dir"),
    (train, ["--out_dir=text.txt/run"], "out_dir"),
    (train, ["--out_dir="], "out_dir"),
    (train, ["--out_dir=run"], "run"),
    (train, ["--out_dir=~/run"], "run"),
    (train, ["--out_dir=only_best"], "only_best"),
    (train, ["--resume="], "--resume"),
    (train, ["--init_from="], "--init_from"),
    (train, ["--init_from=infinite", "--out_dir=new"], "infinite/best.pt has weights that are not"),
    (train, ["--lrt=1", "--lrt_mode=sequential", "--eval_tokens=0"], "eval_tokens"),
    (train, ["config/train_shakespeare.py"], "unexpected word config/train_shakespeare.py"),
    (prepare_data, ["--input=missing.txt"], "missing.txt"),
    (prepare_data, ["--input=data"], "data"),
    (prepare_data, ["--input="], "--input=: must be text, not empty"),
    (prepare_data, ["--input=empty.txt"], "empty.txt"),
    (prepare_data, ["--input=latin1.txt"], "UTF-8"),
    (prepare_data, ["--tokenizer=bpe:0", "--input=text.txt"], "--tokenizer"),
    (prepare_data, ["--tokenizer=bpe:99999", "--input=text.txt"], "--tokenizer"),
    (prepare_data, ["--tokenizer=words", "--input=text.txt"], "--tokenizer"),
    (prepare_data, ["--dataset=a/b", "--input=text.txt"], "--dataset"),
    (prepare_data, ["--dataset=..", "--input=text.txt"], "--dataset"),
    (prepare_data, ["--dataset=parity", "--input=text.txt"], "name of a task"),
    (prepare_data, ["--dataset=parity", "--length=0"], "--length"),
    (prepare_data, ["--dataset=parity", "--length=5", "--rows=20"], "--rows"),
    (prepare_data, ["--dataset=swaps", "--rows=1"], "--rows"),
    (prepare_data, ["--inputs=text.txt"], "mean --input"),
    (prepare_data, ["--input=" + "x" * 300], "too long"),
    (prepare_data, ["--input=a\0b"], "null"),
    (prepare_data, ["--input=~no-such-user/x"], "no-such-user"),
    (prepare_data, ["--dataset=" + "x" * 300, "--input=text.txt"], "--dataset"),
    (sample, ["--out_dir=nowhere"], "no checkpoint"),
    (sample, ["--out_dir=pickled"], "pickled"),
    (sample, ["--out_dir=truncated"], "truncated"),
    (sample, ["--out_dir=flipped"], "flipped"),
    (sample, ["--out_dir=foreign"], "foreign"),
    (sample, ["--out_dir=infinite"], "infinite/best.pt has weights that are not finite"),
    (sample, ["--out_dir=text.txt"], "text.txt"),
    (sample, ["--out_dir=run", "--prompt=日本"], "日"),
    (sample, ["--out_dir=run", "--prompt="], "--prompt"),
    (sample, ["--out_dir=run", "--prompt=FILE:missing.txt"], "missing.txt"),
    (sample, ["--out_dir=run", "--prompt=FILE:"], "no name"),
    (sample, ["--out_dir=run", "--prompt=The", "words"], "unexpected word words"),
    (sample, ["--out_dir=run", "--prompt=a", "--prompt=b"], "--prompt is given 2 times"),
    (sample, ["--out_dir="], "--out_dir"),
    (sample, ["--out_dir=task", "--prompt=1 2"], "'2'"),
    (sample, ["--out_dir=run", "--temperature=-1"], "--temperature"),
    (sample, ["--out_dir=run", "--num_samples=0"], "--num_samples"),
    (sample, ["--out_dir=run", "--max_new_tokens=0"], "--max_new_tokens"),
    (sample, ["--out_dir=run", "--seed=-1"], "--seed"),
    (sample, ["--out_dir=run", "--top_k=x"], "--top_k"),
    (sample, ["--out_dir=run", "--block_size=64"], "block_size"),
    (sample, ["--out_dir=run", "--device=gpu"], "--device"),
    (train, ["--resume=nowhere"], "no checkpoint"),
    (train, ["--resume=foreign"], "foreign/last.pt"),
    (train, ["--resume=pickled"], "pickled/last.pt"),
    (train, ["--resume=infinite"], "infinite/last.pt has weights that are not finite"),
    (train, ["--resume=only_best"], "no checkpoint only_best/last.pt"),
    (train, ["--resume=text.txt"], "text.txt"),
]


CASES = [f"{module.__name__} {' '.join(args):.60}" for module, args, _ in BAD_INPUT]


@pytest.mark.parametrize("module, args, named", BAD_INPUT, ids=CASES)
def test_bad_input_is_refused(broken, monkeypatch, capsys, module, args, named):
    """In one line; and nothing changes."""
    monkeypatch.chdir(broken)
    for home in ("HOME", "USERPROFILE"):                # of ~ in a path, on Windows the latter
        monkeypatch.setenv(home, str(broken))
    before = all_files()
    if module is train and args[0] != "--dataset=parity" and not args[0].startswith("--resume"):
        args = SMALL + args
    assert named in ends_in_one_line(module, args, capsys)
    assert all_files() == before


# ---- What a run's last.pt holds, each an error in a file that is whole

WRONG_IN_LAST = [
    dict(iter="x"), dict(iter=-1), dict(iter=10 ** 6),
    dict(recent="x"), dict(recent=[{}]),
    dict(rows=7), dict(rows="x"), dict(rows=[1]), dict(rows=[{}]), dict(rows=[{"iter": 1}]),
    dict(optimizers=[]), dict(optimizers=[{}, {}]),
    dict(settings=3), dict(processes=2),
]


@pytest.mark.parametrize("changes", WRONG_IN_LAST, ids=str)
def test_a_run_is_not_resumed_from_what_is_none(trained, capsys, changes):
    """Nothing of the folder changes, and the line names it."""
    Path("run").rename("foreign")
    good = torch.load("foreign/last.pt", weights_only=True)
    refuses_to_resume({**good, **changes}, capsys)


def test_a_run_is_not_resumed_with_other_settings(trained, capsys):
    Path("run").rename("foreign")
    good = torch.load("foreign/last.pt", weights_only=True)
    refuses_to_resume({**good, "meta": {"codec": good["meta"]["codec"]}}, capsys)
    for name, value in (("batch_size", "x"), ("settings_that_are_no_more", 4)):
        refuses_to_resume({**good, "settings": {**good["settings"], name: value}}, capsys)


def refuses_to_resume(last, capsys):
    torch.save(last, "foreign/last.pt")
    before = all_files()
    assert re.search("foreign|batch_size", ends_in_one_line(train, ["--resume=foreign"], capsys))
    assert all_files() == before


def test_a_best_checkpoint_is_nothing_to_go_on_from(trained, capsys):
    shutil.copy("run/best.pt", "run/last.pt")           # whole, but without the optimizers' state
    line = ends_in_one_line(train, ["--resume=run"], capsys)
    assert "new run, same weights: --init_from=run/last.pt" in line


# ---- Damage

FILES = ["data/mine/meta.json", "data/mine/train.bin", "data/mine/val.bin", "data/parity/meta.json",
         "data/parity/train_y.bin", "run/best.pt", "run/last.pt", "task/best.pt"]


def damage(whole, rng):
    """Some bits flipped (half the time), the end cut off, or all of it twice."""
    damaged = bytearray(whole)
    kind = rng.integers(4)
    if kind == 0:
        del damaged[rng.integers(len(whole)):]
    elif kind == 1:
        damaged = damaged * 2
    else:
        for position in rng.integers(len(whole), size=rng.integers(1, 9)):
            damaged[position] ^= 1 << rng.integers(8)
    return damaged


def reader_of(path):
    """(script, flags) that reads a file."""
    if path.name == "best.pt":
        return sample, [f"--out_dir={path.parent}", "--prompt=1", "--max_new_tokens=2"]
    if path.name == "last.pt":
        return train, ["--resume=run"]
    return train, SMALL if path.parent.name == "mine" else SMALL_TASK


def all_is_read(*args):
    raise Unusable("all is read")


def read(path):
    """The exit status of its reader, which does little else: a run ends when its data are read."""
    module, args = reader_of(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "report", lambda run, stop: None)
        if Path("data") in path.parents:
            patch.setattr(train, "Plan", all_is_read)
        return run(module, *args)


def test_damaged_files_are_refused_or_harmless(trained, capsys):
    """500 random mutations: no traceback, no hang, no file changed."""
    rng = np.random.default_rng(0)
    refused = 0
    for n in range(500):
        path = Path(FILES[n % len(FILES)])
        whole = path.read_bytes()
        path.write_bytes(damage(whole, rng))
        before = all_files()
        capsys.readouterr()
        status = read(path)
        err = capsys.readouterr().err
        assert status in (0, 2), (n, path, status, err)
        if status == 2:
            assert err.startswith("error: ") and err.count("\n") == 1, (n, path, err)
            assert all_files() == before, (n, path)
            refused += "all is read" not in err
        path.write_bytes(whole)
    assert refused > 250


# ---- What others trip over

def test_paths_and_texts_that_others_trip_over(here, capsys):
    """A text without a line break; a folder with a space; the file in place of its folder."""
    Path("dna.txt").write_text("ACGTTGCAAC" * 200, encoding="utf-8")
    prepare_data.prepare("dna", "char", "dna.txt")
    assert run(train, *SMALL, "--dataset=dna", "--out_dir=a run", "--max_iters=1") == 0
    said = re.findall(r"\$ python sample.py (.*)", capsys.readouterr().out)[0]
    assert run(sample, *shlex.split(said), "--max_new_tokens=5") == 0
    assert len(capsys.readouterr().out) == 1 + 5 + 1    # a first token, for want of a line break
    for path in ("a run/last.pt", "a run/best.pt"):
        assert run(sample, f"--out_dir={path}", "--prompt=AC", "--max_new_tokens=1") == 0


@pytest.mark.parametrize("flags", [["--lrt=1", "--lrt_mode=sequential"], ["--lrt=1"]])
def test_rows_of_one_token(here, flags):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, *flags, "--block_size=1", "--max_iters=1") == 0


def test_memory_that_is_not_there_is_said_so(trained, capsys):
    line = ends_in_one_line(train, [*SMALL, "--n_embd=1000000", "--out_dir=big"], capsys)
    assert "memory" in line and not Path("big").exists()
