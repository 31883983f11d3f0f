"""Settings, failing in one line, files, checkpoints."""
import ast
import dataclasses
import errno
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare_data
import sample
import train
import lrt
from support import checkpoint, files, options, script as scripts
from support.testing import HERE, SMALL_TASK, SMALL, run, same, all_files, ends_in_one_line


def test_whatever_looking_can_raise_ends_in_one_line(here, capsys):
    """A folder one may not enter, a name that is too long, a NUL, somebody without a home; but no mistake."""
    denied = PermissionError(errno.EACCES, "Permission denied", "secret/last.pt")
    def looking(look):
        @scripts.script
        def main(argv):
            look()
        return type("module", (), {"main": main})
    def deny():
        raise denied
    for look, named in ((deny, "secret/last.pt: Permission denied"), (lambda: os.stat("x" * 300), "too long"),
                        (lambda: files.read_text("a\0b"), "null"),
                        (lambda: files.own("a\0b", "--out_dir"), "null"),
                        (lambda: checkpoint.load_checkpoint("a\0b"), "null"),
                        (lambda: checkpoint.load_checkpoint("~no-such-user/x"), "no-such-user")):
        assert named in ends_in_one_line(looking(look), [], capsys)
    with pytest.raises(ValueError):
        run(looking(lambda: int("x")))


@dataclasses.dataclass
class SomeSettings:
    max_iters: int = options.option(10, "steps, 5% of all (no epochs)", (1, 1000))
    min_lr: float = options.option(0.0, "any number")
    lrt: int = options.option(0, "on or off", [0, 1])
    lrt_sweeps: int = options.option(1, "some")
    lrt_mode: str = options.option("parallel", "how", ["parallel", "sequential"])
    n_layer: int = options.option(2, "layers", (1, 100))
    out_dir: str = options.option("out", "where", bool)


def test_settings_carry_their_range_and_help(capsys):
    parse = functools.partial(options.parse, SomeSettings, "what it is")
    assert parse([]) == (SomeSettings(), ()) and parse([], n_layer=5)[0] == SomeSettings(n_layer=5)
    assert parse(["--lrt=True", "--min_lr", "-1.5", "--n_layer=3", "--out_dir=True"], n_layer=5) == (
        SomeSettings(lrt=1, min_lr=-1.5, n_layer=3, out_dir="True"), ("lrt", "min_lr", "n_layer", "out_dir"))
    with pytest.raises(SystemExit):
        parse(["-h"])
    out = " ".join(capsys.readouterr().out.split())
    for text in ("what it is", "5% of all (no epochs) (a whole number from 1 to 1,000; default: 10)", "where (text, not empty; default: out)",
                 "how (parallel or sequential; default: parallel)"):
        assert text in out
    for arg, message in {
            "--max_iters=0": "=0: must be a whole number from 1 to 1,000", "--max_iters=1.5": "must",
            "--min_lr=nan": "nan: must be a number", "--min_lr=inf": "be a number", "--min_lr=": "must",
            "--out_dir=": "=: must be text, not empty",
            "--lrt=2": "=2: must be 0 or 1", "--lrt=maybe": "must be 0 or 1", "--max_iters=" + "9" * 5000: "",
            "--lrt_mode=x": "must be parallel or sequential", "--lrt": "--lrt: expected one argument",
            "--steps=3": "did you mean --max_iters?", "--epochs": "--max_iters?", "--n_layers=3": "n_layer?",
            "--max-iters=3": "--max_iters?", "out": "no out (did you mean --out_dir?", "lrt=1": "mean --lrt?",
            "--layers=2": "mean --n_layer?", "--lr=0.1": "mean --min_lr?", "--init_from=x": "from;", "--dim=3": "dim;",
            "--top_k=3": "top_k;"}.items():
        with pytest.raises(SystemExit):
            parse([arg])
        err = capsys.readouterr().err
        assert message in err and err.startswith("error: ") and err.count("\n") == 1, (arg, err)


@pytest.mark.parametrize("said, meant", {
    "lr": "learning_rate", "steps": "max_iters", "iters": "max_iters", "epochs": "max_iters", "layers": "n_layer",
    "heads": "n_head", "dim": "n_embd", "width": "n_embd", "batch": "batch_size", "context": "block_size",
    "subsets": "lrt_subsets", "n_layers": "n_layer", "min_lr": None, "temperature": None, "bs": None}.items())
def test_everyday_names_get_a_hint(said, meant, capsys):
    err = ends_in_one_line(train, [f"--{said}=1"], capsys)
    assert (f"(did you mean --{meant}?)" in err) if meant else ("did you mean" not in err)


def test_commands_can_be_pasted(monkeypatch):
    words = ["python", "train.py", "--out_dir=my run", Path("a/b")]
    assert scripts.command(*words) == "python train.py '--out_dir=my run' a/b"
    monkeypatch.setattr(scripts.os, "name", "nt")
    assert scripts.command(*words[:3], r"C:\out") == r'python train.py "--out_dir=my run" C:\out'


BAD_INPUT = [       # (script, flags, what the message must name); the folders are made in the test below
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
    (train, ["--lrt=1", "--lrt_subsets=3", "--block_size=-4"], "--block_size=-4: must be a whole number"),
    (train, ["--n_embd=" + "1" * 30], "--n_embd"),
    (train, ["--max_iters=1.5"], "max_iters"),
    (train, ["--max_flops=inf"], "max_flops"),
    (train, ["--max_flops=10"], "max_flops"),
    (train, ["--seed=-1"], "--seed"),
    (train, ["--seed=99999999999999999999"], "--seed"),
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
    (train, ["--resume="], "--resume"),
    (train, ["--init_from="], "--init_from"),
    (train, ["--lrt=1", "--lrt_mode=sequential", "--eval_tokens=0"], "eval_tokens"),
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
    (train, ["--out_dir=only_best"], "only_best"),
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
    (sample, ["--out_dir=run", "--prompt=日本"], "日"),
    (sample, ["--out_dir=run", "--prompt="], "--prompt"),
    (sample, ["--out_dir=run", "--prompt=FILE:missing.txt"], "missing.txt"),
    (sample, ["--out_dir=run", "--prompt=FILE:"], "no name"),
    (sample, ["--out_dir="], "--out_dir"),
    (sample, ["--out_dir=task", "--prompt=1 2"], "'2'"),
    (sample, ["--out_dir=run", "--temperature=-1"], "--temperature"),
    (sample, ["--out_dir=run", "--num_samples=0"], "--num_samples"),
    (sample, ["--out_dir=run", "--max_new_tokens=0"], "--max_new_tokens"),
    (sample, ["--out_dir=run", "--seed=-1"], "--seed"),
    (sample, ["--out_dir=run", "--top_k=x"], "--top_k"),
    (sample, ["--out_dir=run", "--block_size=64"], "block_size"),
]


@pytest.mark.skipif(lrt.__name__ != "lrt", reason="of all scripts")
def test_bad_input_ends_in_one_line_and_changes_nothing(trained, capsys, monkeypatch):
    for home in ("HOME", "USERPROFILE"):                # of ~ in a path, on Windows the latter
        monkeypatch.setenv(home, str(Path.cwd()))
    def copy(source, name, change):
        """data/name, as data/source with its meta.json and files changed."""
        folder = Path("data", name)
        shutil.copytree(Path("data", source), folder)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        change(folder, meta)
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    Path("empty.txt").touch()
    Path("latin1.txt").write_bytes("naïve".encode("latin-1"))
    Path("data/broken").mkdir()
    Path("data/broken/meta.json").write_text("{", encoding="utf-8")
    copy("mine", "short", lambda folder, meta: os.truncate(folder / "train.bin", 100))
    copy("mine", "odd", lambda folder, meta: (folder / "val.bin").write_bytes((folder / "val.bin").read_bytes() + b"x"))
    copy("mine", "beyond", lambda folder, meta: (folder / "train.bin").write_bytes(b"\xff" * 2 * meta["train_tokens"]))
    copy("mine", "other_codec", lambda folder, meta: meta["codec"].update(kind="pickle"))
    copy("mine", "own_pattern", lambda folder, meta: meta.update(codec={"kind": "bpe", "pattern": "(a+)+$", "tokens": []}))
    copy("parity", "few_targets", lambda folder, meta: meta.update(val_y_tokens=8) or os.truncate(folder / "val_y.bin", 16))
    whole = Path("run/best.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    class Evil:
        def __reduce__(self):
            return (open, ("evil_was_here", "w"))
    for name, content in (("pickled", None), ("truncated", whole[:-100]), ("flipped", bytes(flipped)), ("foreign", None)):
        Path(name).mkdir()
        if content:
            Path(name, "best.pt").write_bytes(content)
    torch.save(Evil(), "pickled/best.pt")
    Path("only_best").mkdir()
    shutil.copy("run/best.pt", "only_best/best.pt")
    torch.save({**torch.load("run/best.pt", weights_only=True), "config": torch.load("task/best.pt", weights_only=True)["config"]},
               "foreign/best.pt")
    before = all_files()
    for module, args, named in BAD_INPUT:
        err = ends_in_one_line(module, [*(SMALL if module is train and args[0] != "--dataset=parity" else []), *args], capsys)
        assert named in err, (args, err)
        assert all_files() == before, args
    for folder, named in (("nowhere", "no checkpoint"), ("foreign", "last.pt"), ("pickled", "last.pt")):
        if folder != "nowhere":
            Path(folder, "best.pt").rename(Path(folder, "last.pt"))
        before = all_files()
        assert named in ends_in_one_line(train, [f"--resume={folder}"], capsys) and all_files() == before
    good = torch.load("run/last.pt", weights_only=True)
    for changes in (dict(iter="x"), dict(iter=-1), dict(iter=10 ** 6), dict(recent="x"), dict(recent=[{}]), dict(rows=7),
                    dict(rows="x"), dict(rows=[1]), dict(rows=[{}]), dict(rows=[{"iter": 1}]), dict(optimizers=[]),
                    dict(settings={**good["settings"], "gone_by": 4}),                             # what is no more
                    dict(optimizers=[{}, {}]), dict(meta={"codec": good["meta"]["codec"]}),
                    dict(settings={**good["settings"], "batch_size": "x"}), dict(settings=3), dict(processes=2)):
        torch.save({**good, **changes}, "foreign/last.pt")
        before = all_files()
        assert re.search("foreign|batch_size", ends_in_one_line(train, ["--resume=foreign"], capsys)), changes
        assert all_files() == before, changes
    shutil.copy("run/best.pt", "foreign/last.pt")               # whole, but nothing to go on with
    assert "new run, same weights: --init_from=foreign/last.pt" in ends_in_one_line(train, ["--resume=foreign"], capsys)


@pytest.mark.skipif(lrt.__name__ != "lrt", reason="of all scripts")
def test_damaged_files_are_refused_or_harmless(trained, capsys):
    """500 random mutations, bytes flipped, cut off or doubled: no traceback, no hang, no file changed."""
    rng, refused = np.random.default_rng(0), 0
    files = [Path(p) for p in ("data/mine/meta.json", "data/mine/train.bin", "data/mine/val.bin", "data/parity/meta.json",
                               "data/parity/train_y.bin", "run/best.pt", "run/last.pt", "task/best.pt")]
    for n in range(500):
        path = files[n % len(files)]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        kind = ("flip", "flip", "cut", "double")[rng.integers(4)]
        if kind == "flip":
            for position in rng.integers(len(whole), size=rng.integers(1, 9)):
                damaged[position] ^= 1 << rng.integers(8)
        elif kind == "cut":
            del damaged[rng.integers(len(whole)):]
        else:
            damaged = damaged * 2
        path.write_bytes(damaged)
        before = all_files()
        if path.suffix == ".pt" and path.name == "best.pt":
            module, args = sample, [f"--out_dir={path.parent}", "--prompt=1", "--max_new_tokens=2"]
        elif path.suffix == ".pt":
            module, args = train, ["--resume=run"]
        else:
            module, args = train, [*(SMALL if path.parent.name == "mine" else SMALL_TASK), "--max_flops=1"]   # ends after loading
        capsys.readouterr()
        status, err = run(module, *args), capsys.readouterr().err
        assert status in (0, 2), (n, path, kind, status, err)
        if status == 2:
            assert err.startswith("error: ") and err.count("\n") == 1, (n, path, kind, err)
            assert all_files() == before, (n, path, kind)
            refused += "max_flops" not in err
        path.write_bytes(whole)
    assert refused > 250


def test_paths_and_texts_that_others_trip_over(here, capsys):
    """A text without a line break; a folder with a space; the file in place of its folder; from Python, exceptions."""
    Path("dna.txt").write_text("ACGTTGCAAC" * 200, encoding="utf-8")
    prepare_data.prepare("dna", "char", "dna.txt")
    assert run(train, "--dataset=dna", *SMALL[1:], "--out_dir=a run", "--max_iters=1") == 0
    said = re.findall(r"\$ python sample.py (.*)", capsys.readouterr().out)[0]
    assert run(sample, *shlex.split(said), "--max_new_tokens=5") == 0
    assert len(capsys.readouterr().out) == 1 + 5 + 1                    # a first token, since there is no line break
    for path in ("a run/last.pt", "a run/best.pt"):
        assert run(sample, f"--out_dir={path}", "--prompt=AC", "--max_new_tokens=1") == 0
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load_checkpoint("nowhere")
    with pytest.raises(ValueError, match="not a checkpoint"):
        Path("x.pt").write_bytes(b"x")
        checkpoint.load_checkpoint("x.pt")
    flags = ["--lrt=1", "--lrt_mode=sequential", "--block_size=1", "--out_dir=one", "--max_iters=1"]
    assert run(train, "--dataset=dna", *SMALL[2:], *flags) == 0         # no S to contradict it
    assert run(train, "--dataset=dna", *SMALL[2:], "--lrt=1", "--block_size=1", "--out_dir=two", "--max_iters=1") == 0


def test_checkpoints_of_wrapped_models_load(trained):
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        saved = torch.load("run/best.pt", weights_only=True)
        saved["model"] = {prefix + name: w for name, w in saved["model"].items()}
        Path("wrapped").mkdir(exist_ok=True)
        torch.save(saved, "wrapped/best.pt")
        ours, theirs = (checkpoint.load_checkpoint(f"{run}/best.pt")[0] for run in ("run", "wrapped"))
        assert same(ours.state_dict(), theirs.state_dict())


def test_memory_that_is_not_there_is_said_so(trained, capsys):
    err = ends_in_one_line(train, [*SMALL, "--n_embd=1000000", "--out_dir=big"], capsys)
    assert "memory" in err and not Path("big").exists()


def test_terminals_that_are_not_utf8(here):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for args in (["prepare_data.py", "--dataset=mine", "--input=text.txt"], ["train.py", *SMALL, "--max_iters=3"]):
        done = subprocess.run([sys.executable, HERE / args[0], *args[1:]], capture_output=True, env=env)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


def test_nothing_newer_than_python_3_10_is_used():
    for script in HERE.glob("*.py"):
        ast.parse(script.read_text(encoding="utf-8"), feature_version=(3, 10))
