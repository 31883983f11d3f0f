"""The tests of the scripts, data, README and several processes."""
import ast
import dataclasses
import errno
import functools
import hashlib
import importlib
import inspect
import io
import itertools
import json
import linecache
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import tracemalloc
import xml.etree.ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import prepare_data
import sample
import train
import lrt
from support import checkpoint, files, optimizer, options, script as scripts, tokens as codecs

HERE = Path(__file__).parent.parent
torch.set_num_threads(1)

# ---- Data --------------------------------------------------------------------------------------------------

TEXT = "".join(f"SPEAKER {i % 7}:\nThe {i * 37 % 101} words of line {i}, naïvely counted — "
               f"{'lo ' * (i % 5)}end.\n\n" for i in range(120))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with text.txt in it."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    return tmp_path


@pytest.mark.parametrize("tokenizer", ["char", "bpe:40"])
def test_prepared_text_comes_back(here, tokenizer):
    prepare_data.prepare("mine", tokenizer, "text.txt")
    meta, codec, tokens = prepare_data.load("mine")
    cut = int(len(TEXT) * 0.9)
    assert codec.decode(tokens["train"].tolist()) == TEXT[:cut]
    assert codec.decode(tokens["val"].tolist()) == TEXT[cut:]
    decode = codec.decoder()
    assert "".join(decode(t) for t in tokens["val"].tolist()) == TEXT[cut:]
    assert meta["train_tokens"] == len(tokens["train"]) and meta["vocab_size"] == codec.vocab_size
    assert codec.vocab_size == (len(set(TEXT)) if tokenizer == "char" else 256 + 40)


def test_bpe_learns_from_the_training_split_alone_and_encodes_anything(here):
    cut = int(len(TEXT) * 0.9)
    other = TEXT[:cut] + "QXQX" * ((len(TEXT) - cut) // 4)
    Path("other.txt").write_text(other, encoding="utf-8", newline="\n")
    prepare_data.prepare("a", "bpe:40", "text.txt")
    prepare_data.prepare("b", "bpe:40", "other.txt")
    a, b = (prepare_data.load(name)[0]["codec"] for name in "ab")
    assert a["tokens"] == b["tokens"]
    strange = "tab\t_under_ 12½ ٣ x\u0301 日本 \u200d\x1c\x85 🙂\n\n  end  "
    codec = codecs.Codec(a)
    assert codec.decode(codec.encode(strange)) == strange
    first = prepare_data.bpe_codec("ab ab abc", 2)["tokens"][256:]    # the commonest pair, then the next
    assert [prepare_data.base64.b64decode(t) for t in first] == [b"ab", b" ab"]


class Server:
    """What urlopen returns; without data, what it does with no network."""
    def __init__(self, data): self.data = data
    def __call__(self, url, timeout):
        if self.data is None:
            raise OSError("no network")
        return io.BytesIO(self.data)


@pytest.mark.parametrize("data", [None, b"<html>not the file</html>", b"x" * 3_000_000])
def test_embedded_corpus_when_the_download_fails_or_is_another_file(here, monkeypatch, capsys, data):
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(data))
    prepare_data.prepare()
    err = capsys.readouterr().err
    assert "EMBEDDED CORPUS" in err and ("no network" if data is None else "sha256") in err
    meta, _, tokens = prepare_data.load("shakespeare")
    assert meta["source"].startswith("embedded") and len(tokens["train"]) > 300_000


def test_download_is_kept_for_other_tokens(here, monkeypatch, capsys):
    monkeypatch.setattr(prepare_data, "SHAKESPEARE_SHA256", hashlib.sha256(TEXT.encode()).hexdigest())
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(TEXT.encode()))
    prepare_data.prepare()
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(None))
    prepare_data.prepare(tokenizer="bpe:10")
    meta, codec, tokens = prepare_data.load("shakespeare")
    assert meta["tokenizer"] == "bpe:10" and meta["source"] == prepare_data.SHAKESPEARE_URL
    assert codec.decode(tokens["val"].tolist()) == TEXT[int(len(TEXT) * 0.9):]
    Path("data/shakespeare/input.txt").write_text("somebody's own text", encoding="utf-8")
    prepare_data.prepare()
    assert "EMBEDDED CORPUS" in capsys.readouterr().err


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


def test_folder_has_one_owner_until_its_process_dies(here, capsys):
    code = "import prepare_data; files.own('run', '--x'); print('ok', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": str(HERE)})
    assert holder.stdout.readline().strip() == b"ok"
    with pytest.raises(SystemExit):
        files.own("run", "--out_dir")
    message = "error: run is in use by another run; wait for it or use another --out_dir\n"
    assert capsys.readouterr().err == message
    holder.kill()
    holder.wait()
    with files.own("run", "--out_dir"):
        with pytest.raises(SystemExit):
            files.own("run", "--out_dir")
    files.own("run", "--out_dir").close()


def test_data_are_prepared_once_and_read_whole(here, monkeypatch, capsys):
    """Two first runs at once: one prepares, the other waits for it. A reader waits for who replaces."""
    downloads = []
    def slow_download(*args, **kwargs):
        downloads.append(args)
        time.sleep(1.5)
        raise OSError("no network")
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", slow_download)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(prepare_data.load, ["shakespeare"] * 2)
        assert len(downloads) == 1 and first[0] == second[0]
        assert capsys.readouterr().err.count("waiting for") == 1
        with files.own("data/shakespeare", "--dataset"):
            reading = pool.submit(prepare_data.load, "shakespeare")
            time.sleep(0.3)
            assert not reading.done()
            for path in Path("data/shakespeare").glob("*.bin"):
                path.write_bytes(bytes(20))
            meta = {**first[0], "train_tokens": 10, "val_tokens": 10, "source": "new"}
            Path("data/shakespeare/meta.json").write_text(json.dumps(meta), encoding="utf-8")
        assert reading.result()[0]["source"] == "new" and len(reading.result()[2]["val"]) == 10
    prepare_data.prepare("shakespeare", input="text.txt")               # by hand it is replaced
    assert prepare_data.load("shakespeare")[0]["source"] == "file: text.txt"
    assert "replaced" in capsys.readouterr().err


SCRIPTS = ["हिन्दी", "ภาษาไทย", "العَرَبِيَّة", "עִבְרִית",
           "தமிழ்", "\u1112\u1161\u11ab\u1100\u1173\u11af", "한국어",
           "👩\u200d🚀", "e\u0301te\u0301", "٣٤٥", "a\u200bb", "a\ufeffb", "a\u180eb", "a\u0378b", "a\ue000b",
           "ὀδύσσεια", "日本語", "Việt", "naïve", "a\u0308\u0323"]


@pytest.mark.parametrize("word", SCRIPTS)
def test_learned_word_is_one_token_in_every_script(word):
    codec = codecs.Codec(prepare_data.bpe_codec(f"{word} " * 100, 100))
    assert len(codec.encode(word)) == len(codec.encode(f" {word}")) == 1
    assert codec.decode(codec.encode(word)) == word


def test_learning_and_encoding_cut_alike():
    """Nothing is left out by the cut; and each piece of it, as a token, is what encoding finds."""
    everything = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xd800 <= c <= 0xdfff)
    words = codecs.WORDS
    assert re.sub(words, "", everything) == ""
    text = " ".join(SCRIPTS) + "  two \n\n\t three" + "x" * 100 + " " * 100 + "9" * 70 + "-" * 70
    text += "\x1c\x85 \u3000 "
    text += "".join(f"a{c}{c}b{c} {c}5" for c in map(chr, [*range(0x400), *range(0x2000, 0x2070)]))
    pieces = [p.encode() for p in re.findall(words, text)]
    tokens = list(dict.fromkeys([*(bytes([b]) for b in range(256)), *pieces]))
    encoded = [prepare_data.base64.b64encode(token).decode() for token in tokens]
    codec = codecs.Codec({"kind": "bpe", "pattern": "words", "tokens": encoded})
    assert [tokens[t] for t in codec.encode(text)] == pieces
    ascii_text = "".join(map(chr, np.random.default_rng(0).choice([9, 10, 13, *range(32, 127)], 20_000)))
    plain = r" ?[A-Za-z]+| ?[0-9]+| ?[^A-Za-z0-9\s]+|\s+(?!\S)|\s+"      # as GPT-2's, without its 's and 'll
    assert re.findall(words, ascii_text) == re.findall(plain, ascii_text)


@pytest.mark.parametrize("alphabet", ["ACGT", "abcdefghijklmnopqrstuvwxyz", " ", "-"])
def test_one_line_without_a_space_takes_no_time(alphabet):
    line = "".join(np.random.default_rng(0).choice(list(alphabet), 100_000))
    start = time.process_time()
    codec = codecs.Codec(prepare_data.bpe_codec(line, 200))
    assert codec.decode(codec.encode(line)) == line and time.process_time() - start < 3
    assert max(map(len, re.findall(codecs.WORDS, line))) <= 33


def test_bpe_learns_what_counting_anew_learns():
    """Each merge from scratch: all pairs of all words counted, the most frequent one joined everywhere."""
    text = "aaa aaaa abab ababa banana bandana " * 3 + TEXT[:1500]
    words = [[bytes([b]) for b in word.encode()] for word in re.findall(codecs.WORDS, text)]
    merged = []
    for _ in range(60):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:]))
        a, b = max(pairs, key=lambda pair: (pairs[pair], pair))
        merged.append(a + b)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (a, b):
                    word[i:i + 2] = [a + b]
                i += 1
    learned = prepare_data.bpe_codec(text, 60)["tokens"][256:]
    assert [prepare_data.base64.b64decode(token) for token in learned] == merged


def test_text_that_is_too_short_to_validate_is_refused(here, capsys):
    """Also when the validation split has two characters, but is one token."""
    Path("short.txt").write_text("ab" * 10, encoding="utf-8")
    Path("shorter.txt").write_text("abc", encoding="utf-8")
    assert "2 tokens" in ends_in_one_line(prepare_data, ["--input=short.txt", "--tokenizer=bpe:1"], capsys)
    assert "2 tokens" in ends_in_one_line(prepare_data, ["--input=shorter.txt"], capsys)
    assert not Path("data").exists()
    prepare_data.prepare("mine", input="text.txt")
    meta = json.loads(Path("data/mine/meta.json").read_text(encoding="utf-8"))
    Path("data/mine/val.bin").write_bytes(b"\1\0")
    Path("data/mine/meta.json").write_text(json.dumps({**meta, "val_tokens": 1}), encoding="utf-8")
    with pytest.raises(SystemExit):
        prepare_data.load("mine")
    assert "needs two" in capsys.readouterr().err


def test_text_is_named_after_its_file(here, capsys):
    for file, name in (("my text (1).txt", "my-text-1"), ("../x/.hidden.txt", "hidden"), ("日本.txt", "text"),
                       ("parity.txt", "parity-text")):
        path = Path("files", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one line " * 20, encoding="utf-8-sig")     # with a mark at its start, as on Windows
        assert run(prepare_data, f"--input={path}") == 0
        err = capsys.readouterr().err
        assert f"python train.py --dataset={name}\n" in err and "vocabulary of 6" in err, err
        assert prepare_data.load(name)[0]["tokenizer"] == "char"


def test_a_sample_begins_with_a_line_break_or_the_first_token(here, capsys):
    Path("line.txt").write_text("one line " * 20, encoding="utf-8")
    for name, text, tokenizer, start in (("a", "line.txt", "char", " "), ("b", "text.txt", "bpe:5", "\n")):
        prepare_data.prepare(name, tokenizer, text)
        assert run(train, *SMALL, f"--dataset={name}", f"--out_dir={name}", "--max_iters=1") == 0
        capsys.readouterr()
        assert run(sample, f"--out_dir={name}", "--max_new_tokens=1") == 0
        assert capsys.readouterr().out.startswith(start)


def test_commands_can_be_pasted(monkeypatch):
    words = ["python", "train.py", "--out_dir=my run", Path("a/b")]
    assert scripts.command(*words) == "python train.py '--out_dir=my run' a/b"
    monkeypatch.setattr(prepare_data.os, "name", "nt")
    assert scripts.command(*words[:3], r"C:\out") == r'python train.py "--out_dir=my run" C:\out'


# ---- Tasks -------------------------------------------------------------------------------------------------

def test_task_targets_are_what_they_say():
    """A row at a time: bits counted, and objects carried from place to place."""
    rng = np.random.default_rng(0)
    x, y = prepare_data.task_rows("parity", 20, 33, rng)
    assert all(y[r, t] == sum(x[r, :t + 1]) % 2 for r in range(20) for t in range(33))
    assert set(x.flat) == {0, 1}
    x, y = prepare_data.task_rows("swaps", 20, 33, rng)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    for row, targets in zip(x.tolist(), y.tolist()):
        objects = list("abcde")
        for operation, target in zip(row, targets):
            if operation:
                i, j = pairs[operation - 1]
                objects[i], objects[j] = objects[j], objects[i]
            smaller = [sum(other < o for other in objects[k + 1:]) for k, o in enumerate(objects)]
            rank = sum(n * math.factorial(4 - k) for k, n in enumerate(smaller))        # of a permutation
            assert target == rank
    assert set(x.flat) == set(range(11)) and len(set(y.flat)) > 100


def test_task_of_ones_own_is_a_table(here, monkeypatch, capsys):
    """Sums modulo 3: targets, data, training and answers follow from the table alone."""
    monkeypatch.setitem(prepare_data.TASKS, "sums", np.add.outer(np.arange(3), np.arange(3)) % 3)
    prepare_data.prepare("sums", length=8, rows=100)
    meta, codec, data = prepare_data.load("sums")
    assert (meta["task"], codec.vocab_size, len(codec.index)) == ("sums", 3, 3)
    for split, count in (("train", 90), ("val", 10)):
        assert data[split].shape == (count, 8)
        assert np.array_equal(data[f"{split}_y"], data[split].cumsum(1) % 3)
    flags = ["--dataset=sums", *SMALL[1:], "--lrt=1", "--max_iters=2"]
    assert run(train, *flags) == 0 and "% at 128 (80 tokens)" in capsys.readouterr().out
    for table in ([[0, 2, 1], [1, 0, 2], [2, 1, 0]], [[0, 1], [1, 0]]):     # of what was prepared before
        monkeypatch.setitem(prepare_data.TASKS, "sums", np.array(table))
        assert "delete it and prepare it again" in ends_in_one_line(train, [*flags, "--overwrite=1"], capsys)
    monkeypatch.setitem(prepare_data.TASKS, "flip", np.array([[0, 1, 0], [1, 1, 0]]))       # more inputs than states
    prepare_data.prepare("flip", length=8, rows=100)
    assert run(train, "--dataset=flip", *flags[1:], "--overwrite=1") == 0
    assert "'3'; known: 0 to 2" in ends_in_one_line(sample, ["--prompt=0 1 3"], capsys)
    monkeypatch.setitem(prepare_data.TASKS, "still", np.array([[0]]))
    assert "--rows" in ends_in_one_line(prepare_data, ["--dataset=still", "--length=64", "--rows=20"], capsys)


def test_only_a_task_has_a_length(here):
    prepare_data.prepare("mine", "char", "text.txt")
    meta = json.loads(Path("data/mine/meta.json").read_text(encoding="utf-8"))
    Path("data/mine/meta.json").write_text(json.dumps({**meta, "length": [16]}), encoding="utf-8")
    assert run(train, *SMALL) == 0
    assert run(train, "--dataset=swaps", *SMALL[1:], "--max_iters=1", "--curriculum=", "--block_size=32", "--overwrite=1") == 0
    assert rows("out")[0]["tokens"] == 4 * 32                                   # and no curriculum if one says so


def test_task_has_no_more_inputs_than_it_was_trained_on():
    codec = codecs.Codec({"kind": "numbers", "count": 120, "inputs": 11})
    assert codec.encode("0 10") == [0, 10] and codec.decode([119]) == "119 "
    for text in ("1 11", "1011", "1 x", "-1", "1,0"):
        with pytest.raises(ValueError, match="no token for .*0 to 10, with spaces between"):
            codec.encode(text)


def test_task_rows_are_different_and_seeded(here):
    read = lambda: prepare_data.load("parity")[2]
    prepare_data.prepare("parity", length=9, rows=200)
    data = read()
    train_rows, val_rows = ({tuple(row) for row in data[name].tolist()} for name in ("train", "val"))
    assert len(train_rows) == 180 and len(val_rows) == 20 and not train_rows & val_rows
    first = data["train"].copy()
    prepare_data.prepare("parity", length=9, rows=200)
    assert np.array_equal(first, read()["train"])
    prepare_data.prepare("parity", length=9, rows=200, seed=1)
    assert not np.array_equal(first, read()["train"])


SMALL_TASK = "--dataset=parity --n_layer=1 --n_head=2 --n_embd=48 --batch_size=32 --eval_interval=20 --device=cpu --lrt=1".split()


def test_task_is_learned_exactly_and_reported_by_length(here, capsys):
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL_TASK, "--lrt_mode=sequential", "--max_iters=60", "--curriculum=2:10") == 0
    out, log = capsys.readouterr().out, rows("out")
    assert "% at 8, " in out
    assert out.endswith("$ python sample.py --out_dir=out '--prompt=1 0 1 1' --device=cpu\n1 1 0 1\n")
    assert [row["tokens"] for row in log] == [32 * (2 * 10 + 8 * (n - 10)) for n in (20, 40, 60)]
    assert list(log[-1]["accuracy_by_length"]) == ["8", "16", "32", "64", "128"] and log[-1]["val_accuracy_exact"] > 0.9
    model, codec, _ = checkpoint.load_checkpoint(Path("out/last.pt"), "cpu")
    x, y = prepare_data.task_rows("parity", 256, 128, np.random.default_rng((1337, 60)))
    right = model.forward_sequential(torch.from_numpy(x))[0].argmax(-1).numpy() == y
    assert log[-1]["accuracy_by_length"]["128"] == pytest.approx(right[:, 115:].mean(), abs=1e-3)
    assert run(sample, "--prompt=1 0 1 1 0 1") == 0
    assert capsys.readouterr().out.split() == ["1", "1", "0", "1", "1", "0"]


def test_verdict_follows_the_answers_and_its_threshold():
    def verdict(exact, graph, **accuracies):
        return train.verdict({"val_loss_exact": exact, "val_loss": graph, **accuracies})
    assert "agree" in verdict(1.528, 1.5) and "DISAGREE" not in verdict(1.528, 1.5)
    assert "DISAGREE" in verdict(1.56, 1.5) and "0.05" in verdict(1.56, 1.5) and "better" in verdict(1.44, 1.5)
    assert "better" in verdict(2.0, 1.5, val_accuracy_exact=0.68, val_accuracy=0.649)   # never against the answers
    assert "DISAGREE" in verdict(1.0, 1.5, val_accuracy_exact=0.6, val_accuracy=0.649)


def test_task_run_says_that_decoding_disagrees_with_training(here, capsys):
    """After training on the last sweep alone, S = 1: what the first pass leaves behind is not there when decoding."""
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL_TASK, "--lrt_subsets=1", "--lrt_loss_weights=0,1", "--max_iters=60") == 0
    row = min(rows("out"), key=train.badness)
    assert row["val_accuracy"] > row["val_accuracy_exact"] + 0.02
    assert "THEY DISAGREE" in capsys.readouterr().out


# ---- The scripts -------------------------------------------------------------------------------------------------

SMALL = ("--dataset=mine --block_size=16 --n_layer=1 --n_head=2 --n_embd=16 --batch_size=4 --max_iters=6 --eval_interval=3 "
         "--log_interval=2 --device=cpu").split()


def run(module, *args):
    """A script's main() in this process; its exit status."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        module.main(list(args))
    except SystemExit as e:
        return e.code
    finally:                                    # as when a process ends
        for n, handler in handlers.items():
            signal.signal(n, handler)
        while files.HELD:
            files.HELD.pop().close()
    return 0


def rows(folder):
    return [json.loads(line) for line in Path(folder, "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder):
    return torch.load(Path(folder, "last.pt"), weights_only=True)["model"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_command_line_from_text_to_text(here):
    """As a user would: three commands, each a process of its own."""
    def command(script, *args):
        done = subprocess.run([sys.executable, HERE / script, *args], capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        assert done.returncode == 0, done.stderr
        return done.stdout
    command("prepare_data.py", "--dataset=mine", "--input=text.txt")
    out = command("train.py", "--lrt=1", *SMALL)
    assert "100%" in out and "exact - training graph" in out
    log = rows("out")
    assert [row["iter"] for row in log] == [3, 6] and log[0]["val_loss_exact"] < math.log(60)
    assert set(log[0]) == {"iter", "tokens", "flops", "seconds", "train_loss", "val_loss", "val_loss_exact",
                           "val_bpb_exact", "val_tokens", "exact_by_position"}
    positions = [row["exact_by_position"] for row in log]
    assert [len(p) for p in positions] == [16, 16]
    assert np.mean(positions[1]) == pytest.approx(log[1]["val_loss_exact"], abs=0.01)
    text = command("sample.py", "--prompt=The ", "--max_new_tokens=40", "--num_samples=2")
    assert text.startswith("The ") and text.count("The ") >= 2 and "---" in text
    assert command("sample.py", "--max_new_tokens=40") == command("sample.py", "--max_new_tokens=40")


@pytest.mark.parametrize("flags", [["--lrt=0"], ["--lrt=1", "--lrt_mode=sequential"], ["--lrt=1", "--lrt_subsets=4", "--lrt_sweeps=2"],
                                   ["--lrt=1", "--lrt_loss_weights=0.5,1"], ["--lrt=1", "--lrt_memory_layer=1", "--dropout=0.2"],
                                   ["--lrt=1", "--lrt_memory_proj=layerwise", "--grad_clip=0"],
                                   ["--lrt=1", "--dtype=bfloat16"]])
def test_trains_in_every_mode(here, flags):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, *flags) == 0
    row = rows("out")[-1]
    assert row["val_loss_exact"] < 4.2 and abs(row["val_loss_exact"] - row["val_loss"]) < 0.1
    assert row["val_bpb_exact"] == pytest.approx(row["val_loss_exact"] / math.log(2) * 1, rel=0.05)


def test_sequential_training_is_the_dial_at_S_equals_T(here):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--lrt_mode=sequential", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", "--lrt_subsets=16", "--lrt_loss_weights=0,1", "--out_dir=b") == 0
    for a, b in zip(rows("a"), rows("b")):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss_exact"] == pytest.approx(b["val_loss_exact"], abs=1e-4)


def test_evaluation_covers_the_split_and_stands_apart(here, monkeypatch):
    """The same whatever the batch size; equal to decoding the windows one by one; training does not notice it."""
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--dropout=0.1", "--out_dir=a") == 0
    assert run(train, *SMALL, "--lrt=1", "--dropout=0.1", "--eval_interval=1", "--out_dir=b") == 0
    assert same(weights("a"), weights("b"))
    model, codec, _ = checkpoint.load_checkpoint(Path("a/last.pt"), "cpu")
    val = prepare_data.load("mine")[2]["val"]
    text = torch.from_numpy(val.astype(np.int64))
    nll = []
    for start in range(0, len(text) - 1, 16):
        x, y = text[start:start + 16][None], text[start + 1:start + 17][None]
        logits, _ = model.eval().forward_sequential(x[:, :y.size(1)])
        nll += torch.nn.functional.cross_entropy(logits[0], y[0], reduction="none").tolist()
    assert len(nll) == len(val) - 1
    assert rows("a")[-1]["val_loss_exact"] == pytest.approx(np.mean(nll), abs=1e-5)
    n_bytes = len(codec.decode(val[1:].tolist()).encode())
    assert rows("a")[-1]["val_bpb_exact"] == pytest.approx(sum(nll) / math.log(2) / n_bytes, abs=1e-5)


KILLER = """
import os, random, sys
import prepare_data, torch, train

moments, random_number = [0], random.Random(int(sys.argv[1]))
last = random_number.randrange(1, 30)

def moment(f):
    def counted(*args, **named):            # a call of f is two moments: before it, and after it
        for when in range(2):
            moments[0] += 1
            if moments[0] == last:
                os._exit(9)                 # as sudden as kill -9: nothing is flushed or tidied up
            if when == 0:
                result = f(*args, **named)
        return result
    return counted

def save_half(state, f):                    # a checkpoint is being written
    save(state, f)
    moments[0] += 1
    if moments[0] == last:
        f.truncate(f.tell() // 2)
        f.flush()
        os._exit(9)

save, torch.save = torch.save, save_half
train.batch, os.fsync, os.replace = moment(train.batch), moment(os.fsync), moment(os.replace)
train.main(sys.argv[2:])
"""


def test_run_killed_at_random_moments_is_the_same_run(here):
    """Between steps and in the middle of writing a file. Then resumed, or begun again where there is nothing to resume."""
    prepare_data.prepare("mine", "char", "text.txt")
    flags = [*SMALL, "--lrt=1", "--dropout=0.1", "--max_iters=40", "--eval_interval=3"]
    assert run(train, *flags, "--out_dir=a") == 0
    kills = 0
    for seed in range(40):
        args = ["--resume=b"] if Path("b/last.pt").exists() else [*flags, "--out_dir=b"]
        done = subprocess.run([sys.executable, "-c", KILLER, str(seed), *args], capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})
        assert done.returncode in (0, 9), done.stderr
        kills += done.returncode == 9
        if Path("b/best.pt").exists():
            checkpoint.load_checkpoint(Path("b/best.pt"), "cpu")        # whole at any moment
        if kills == 4 or done.returncode == 0:
            break
    assert kills >= 3
    if done.returncode:
        assert run(train, "--resume=b") == 0
    assert same(weights("a"), weights("b"))
    strip = lambda log: [{k: v for k, v in row.items() if k != "seconds"} for row in log]
    assert strip(rows("a")) == strip(rows("b"))
    state = lambda folder: torch.load(Path(folder, "last.pt"), weights_only=True)["optimizers"]
    assert str(state("a")) == str(state("b"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("where", ["batch", "windows"])
def test_told_to_stop_it_saves_and_says_how_to_go_on(here, capsys, monkeypatch, name, where):
    """Between two steps, and between two batches of an evaluation, which is then made up for."""
    if not hasattr(signal, name):
        pytest.skip("not on this system")
    signal.signal(getattr(signal, name), signal.SIG_DFL)        # who began these tests may have it ignored
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--out_dir=a") == 0
    function, calls = getattr(train, where), []
    def interrupted(*args):
        calls.append(1)
        if where == "windows" and len(calls) > 1 or where == "batch" and args[3] == 4:      # one: the estimate
            signal.raise_signal(getattr(signal, name))
        return function(*args)
    monkeypatch.setattr(train, where, interrupted)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=the run") == 128 + getattr(signal, name)
    monkeypatch.undo()
    os.chdir(here)
    assert f"go on with: {scripts.command('python', 'train.py', '--resume=the run')}" in capsys.readouterr().out
    last = torch.load("the run/last.pt", weights_only=True)
    assert (last["iter"], len(last["rows"])) == ((5, 1) if where == "batch" else (3, 0))
    assert run(train, "--resume=the run") == 0 and same(weights("a"), weights("the run"))
    assert [row["val_loss_exact"] for row in rows("a")] == [row["val_loss_exact"] for row in rows("the run")]


def test_going_on(here, capsys):
    """Longer, as it was, or from its weights; anything else is refused with what to do."""
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--out_dir=a") == 0
    capsys.readouterr()
    assert run(train, "--resume=a/last.pt", "--n_embd=16", "--device=cpu") == 0     # its own settings may be repeated
    assert "finished" in capsys.readouterr().out
    assert run(train, "--resume=a", "--max_iters=8") == 0 and [row["iter"] for row in rows("a")] == [3, 6, 8]
    assert "falls over 8 steps" in capsys.readouterr().out
    assert torch.load("a/last.pt", weights_only=True)["settings"]["max_iters"] == 8
    for flags, named in ((["--resume=a", "--max_iters=7"], "less than 8"), (["--resume=a", "--n_embd=32"], "init_from"),
                         (["--resume=a", "--dataset=other"], "init_from"), (["--resume=nowhere"], "no checkpoint"),
                         ([*SMALL, "--out_dir=b", "--init_from=a", "--n_embd=32"], "--n_embd=16"),
                         ([*SMALL, "--out_dir=b", "--init_from=nowhere"], "no checkpoint")):
        assert named in ends_in_one_line(train, flags, capsys)
    assert run(train, *SMALL, "--lrt=1", "--init_from=a/best.pt", "--out_dir=b", "--learning_rate=0") == 0
    assert "u_k.0.weight" in capsys.readouterr().out                            # what a plain GPT does not have
    assert torch.equal(weights("b")["embed.weight"], torch.load("a/best.pt", weights_only=True)["model"]["embed.weight"])
    assert "--lrt=1" in ends_in_one_line(train, [*SMALL, "--init_from=b", "--out_dir=c"], capsys)
    prepare_data.prepare("mine", "bpe:40", "text.txt")
    for flags in (["--resume=a"], [*SMALL, "--init_from=a", "--out_dir=c"]):
        assert "--tokenizer=char" in (err := ends_in_one_line(train, flags, capsys)) and "--tokenizer=bpe:40" in err
    assert not Path("c").exists() and not Path("nowhere").exists()


def test_it_saves_before_the_first_evaluation_and_owns_its_folder(here, capsys, monkeypatch):
    prepare_data.prepare("mine", "char", "text.txt")
    draw, seen = train.batch, []
    def busy(data, s, T, step, *rest):
        if step == 2:
            seen.append(Path("out/last.pt").exists())
            for flags in ([*SMALL, "--overwrite=1"], ["--resume=out"]):
                seen.append(subprocess.run([sys.executable, HERE / "train.py", *flags], capture_output=True, text=True))
        return draw(data, s, T, step, *rest)
    monkeypatch.setattr(train, "batch", busy)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    assert run(train, *SMALL) == 0
    assert seen[0] and all(r.returncode == 2 and "in use" in r.stderr and r.stderr.count("\n") == 1 for r in seen[1:])
    assert [row["iter"] for row in rows("out")] == [3, 6]


def test_long_validation_splits_are_sampled_evenly(here, capsys):
    val = np.arange(1000, dtype=np.uint16)
    def places(most, T=8):
        return [row for x, y in train.windows({"val": val}, T, most, 65, "cpu") for row in x.tolist()]
    assert sum(places(1000), []) == list(range(999)) and places(999) == places(1000)        # all of it, once
    some = places(80)
    assert len(some) == 10 and places(80) == some and all(row == list(range(row[0], row[0] + 8)) for row in some)
    assert {b[0] - a[0] for a, b in zip(some, some[1:])} <= {96, 104} and some[-1][0] >= 880
    assert places(80, T=2000) == [list(range(999))]                                         # less than a row
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--eval_tokens=100") == 0
    assert rows("out")[-1]["val_tokens"] == 96 and "96 tokens" in capsys.readouterr().out


def test_time_left_counts_all_that_is_left(here, capsys, monkeypatch):
    """With steps of 1 s, evaluations of 20 s and a report of 5 s, by a clock that only they move."""
    now, step, evaluate = [0.0], train.Run.step, train.evaluate
    def takes(seconds, function):
        def timed(*args, **named):
            now[0] += seconds(*args, **named)
            return function(*args, **named)
        return timed
    share = lambda model, s, codec, data, *_: (20 if s.lrt else 5) * min(1, s.eval_tokens / 1000)
    monkeypatch.setattr(train, "perf_counter", lambda: now[0])
    monkeypatch.setattr(train.Run, "step", takes(lambda run: 1, step))
    monkeypatch.setattr(train, "evaluate", takes(share, evaluate))
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1", "--max_iters=100", "--eval_interval=40", "--log_interval=10", "--eval_tokens=1000") == 0
    lines = {int(n): int(left) for n, left in re.findall(r"step +(\d+)/.* (\d+) s left", capsys.readouterr().out)}
    assert min(lines) <= 3                                                      # a line soon after the header
    for n, left in lines.items():
        evaluations = sum(n <= at for at in (40, 80, 100))
        assert left == pytest.approx(100 - n + 20 * evaluations + 5, rel=0.03), n


def test_overwrite_leaves_nothing_of_the_old_run_and_bad_numbers_stop_it(here, capsys):
    prepare_data.prepare("mine", "char", "text.txt")
    assert run(train, *SMALL, "--lrt=1") == 0
    assert run(train, *SMALL, "--learning_rate=1e9", "--warmup_iters=0", "--overwrite=1") == 2
    err = capsys.readouterr().err
    assert "loss is nan" in err and "smaller --learning_rate" in err
    assert {p.name for p in Path("out").iterdir()} == {".lock", "run.json"}


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (24, 24), (3, 40)])
def test_muon_is_torchs(shape):
    """To bfloat16's digits, with momentum and decay, over several steps; two matrices in a stack are two matrices."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(*shape)), torch.nn.Parameter(torch.randn(*shape[::-1]))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = optimizer.Muon(ours, lr=0.02, momentum=0.85, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.85, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        before = [p.detach().clone() for p in ours]
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad, q.data = p.grad.clone(), p.data.clone()
        a.step(), b.step()
        for p, q, old in zip(ours, theirs, before):
            assert (p - q).norm() < 0.06 * (q - old).norm()


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 16, 64), (2, 30, 40)])
def test_orthogonalized_directions_have_singular_values_of_about_one(shape):
    """Those that are not tiny; and all of them are what five polynomials make of them, in float64."""
    torch.manual_seed(0)
    X = torch.randn(shape) + 3 * torch.randn(shape[0], shape[1], 1) @ torch.randn(shape[0], 1, shape[2])
    U, old, V = torch.linalg.svd(X.double(), full_matrices=False)
    values = old / old.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values ** 3 + 2.0315 * values ** 5
    close(optimizer.orthogonalize(X).double(), U * values[:, None] @ V, atol=2e-5)
    large = values[old > 0.02 * old.norm(dim=1, keepdim=True)]
    assert 0.65 < large.min() and large.max() < 1.2


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


def all_files():
    return {p: p.read_bytes() for p in sorted(Path(".").rglob("*")) if p.is_file() and p.name != ".lock"}


def ends_in_one_line(module, args, capsys):
    """Runs a script that must refuse: exit status 2, one line. Returns the line."""
    capsys.readouterr()
    status, err = run(module, *args), capsys.readouterr().err
    assert status == 2, (args, status, err)
    assert err.startswith("error: ") and err.count("\n") == 1, (args, err)
    return err


@pytest.fixture
def trained(here):
    """text.txt, data/mine, data/parity, and the runs `run` and `task`."""
    prepare_data.prepare("mine", "char", "text.txt")
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=run") == 0
    assert run(train, *SMALL_TASK, "--max_iters=2", "--out_dir=task") == 0


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
                    dict(settings={**good["settings"], "gradient_accumulation_steps": 4}),      # what is no more
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


def test_a_text_has_no_end(monkeypatch):
    """Nothing of 100 MB of text is kept, whatever the number of samples."""
    class Endless:
        embed = SimpleNamespace(weight=torch.zeros(1))
        def init_cache(self, B): return SimpleNamespace(sweeps=1, residual=0.0)
        def generate(self, idx, n, *_): return (torch.tensor([7]) for _ in range(n))
    codec = SimpleNamespace(decoder=lambda: lambda token: "x" * 50_000 if token == 7 else "")
    printed = []
    class Terminal:
        def write(self, text): printed[:] = [len(text) + sum(printed)]
        def flush(self): pass
    monkeypatch.setattr(sys, "stdout", Terminal())
    tracemalloc.start()
    for _ in range(2):
        sample.stream(Endless(), codec, [0], 1000, 1.0, 5, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    monkeypatch.undo()
    assert sum(printed) > 10 ** 8 and peak < 10 ** 6


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
        checkpoint = torch.load("run/best.pt", weights_only=True)
        checkpoint["model"] = {prefix + name: w for name, w in checkpoint["model"].items()}
        Path("wrapped").mkdir(exist_ok=True)
        torch.save(checkpoint, "wrapped/best.pt")
        assert same(checkpoint.load_checkpoint(Path("wrapped/best.pt"), "cpu")[0].state_dict(), checkpoint.load_checkpoint(Path("run/best.pt"), "cpu")[0].state_dict())


@pytest.mark.parametrize("after", [0, 1000])
def test_full_disk_loses_nothing(trained, capsys, monkeypatch, after):
    """The disk is full after some bytes of every file."""
    class FullDisk(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)
    before = all_files()
    monkeypatch.setattr(prepare_data, "open", lambda path, mode: FullDisk(path, mode), raising=False)
    for path in ("run/last.pt", "run/new.pt"):
        with pytest.raises(SystemExit):
            files.write_atomic(path, lambda f: torch.save({"w": torch.zeros(10_000)}, f))
        assert path in capsys.readouterr().err
    assert "No space left" in ends_in_one_line(prepare_data, ["--dataset=mine", "--input=text.txt"], capsys)
    assert all_files() == before


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


# ---- README ------------------------------------------------------------------------------------------------

README = (HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else ""
# Indented lines that begin with a program: without their remark, which two spaces set off.
COMMANDS = [re.split(r" {2,}", line.strip())[0] for line in re.findall(r"^    (?:python|pip|torchrun) .*", README, re.M)]
SETTINGS = {"train.py": train, "sample.py": sample, "prepare_data.py": prepare_data}

def words_of(command):
    """The script that a command of the README runs, and its arguments."""
    words = shlex.split(command.split("&&")[-1])
    script = next(n for n, word in enumerate(words) if word.endswith(".py") or word == "pytest")
    return words[script], words[script + 1:]

@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_have_scripts_and_flags_that_exist(command):
    script, args = words_of(command)
    assert script == "pytest" or (HERE / script).exists()
    flags = {arg.split("=")[0].lstrip("-") for arg in args if arg.startswith("--")}
    if script in SETTINGS and "-h" not in args:
        module = SETTINGS[script]
        options.parse(module.Settings, "", args)               # ends with an error if not
    elif script != "pytest":
        source = (HERE / script).read_text(encoding="utf-8")
        assert all(re.search(rf"\b{flag}: |\"--{flag}", source) for flag in flags), flags

def test_readme_quick_commands_and_python_block_run(here, capsys, monkeypatch):
    """What takes no more than a few seconds, in its order, on small stand-ins of the runs that it needs."""
    Path("text.txt").write_text(TEXT + "ROMEO: what?\n" * 9, encoding="utf-8", newline="\n")
    monkeypatch.setattr(prepare_data, "shakespeare", lambda folder: (TEXT, "test"))
    prepare_data.prepare("mine", "char", "text.txt")
    prepare_data.prepare("parity", length=8, rows=120)
    assert run(train, *SMALL, "--lrt=1", "--out_dir=out") == 0
    assert run(train, *SMALL_TASK, "--max_iters=2", "--out_dir=out-parity") == 0
    Path("bits.txt").write_text("1 0 1 1 " * 50)
    quick = [words_of(command) for command in COMMANDS]
    quick = [(script, args) for script, args in quick if script in ("sample.py", "prepare_data.py") or "-h" in args]
    for script, args in quick:
        args = [arg.replace("FILE", "text.txt") if arg == "--input=FILE" else arg for arg in args]
        args = ["--max_new_tokens=30" if arg.startswith("--max_new_tokens") else arg for arg in args]
        assert run(SETTINGS[script], *args) == 0, (script, args, capsys.readouterr().err)
    assert len(quick) >= 6
    block = textwrap.dedent("\n".join(re.search(r"^    import torch\n(?:    .*\n|\n(?=    ))*", README, re.M)[0].splitlines()))
    capsys.readouterr()
    exec(compile(block, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "torch.Size([1, 16])" in said and len(said) > 80


# ---- Several processes -----------------------------------------------------------------------------------------------

def torchrun(*args):
    """Two processes; a hang is an error."""
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *args],
                          capture_output=True, text=True, encoding="utf-8", timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8",
                               "PYTHONPATH": str(HERE)})


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
import os, signal, train

def signalled(step, rank, function):
    def called(*args, **named):
        result = function(*args, **named)
        if train.RANK == rank and running[0].iter == step:
            os.kill(os.getpid(), signal.SIGINT)
        return result
    return called

running, step = [], train.Run.step
train.Run.step = lambda run: (running.append(run), step(run))[1]
train.together, train.batch = signalled(10, 1, train.together), signalled(10, 0, train.batch)
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


if __name__ == "__main__":
    flags = dict(arg.partition("=")[::2] for arg in sys.argv[1:] if arg.startswith("--"))
    names = [flags[f] for f in ("--handout", "--grade") if flags.get(f)]
    names += [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    sys.dont_write_bytecode = True
    if set(flags) == {"--handout"} and len(names) == 1:
        handout(*names)
    elif set(flags) == {"--mutants"} and not names:
        survived = 0
        for mutant in MUTANTS:
            killers, said = killed_by(mutant[1], changed(*mutant[1:]))
            print(f"{'rejected' if killers else 'SURVIVED'}  {mutant[1]}: {mutant[0]}")
            print(f"          {killers[0]}: {said}" if killers else "", flush=True)
            survived += not killers
        sys.exit(f"{survived} of {len(MUTANTS)} survived" if survived else 0)
    elif "--grade" in flags and set(flags) <= {"--grade", "--json", "--csv", "--limit"} and names:
        form = "json" if "--json" in flags else "csv" if "--csv" in flags else ""
        grade_files(names, form, float(flags.get("--limit", 30)))
    else:
        sys.exit(__doc__)
