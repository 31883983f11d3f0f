"""prepare_data.py: texts, tokens, tasks."""
import hashlib
import json
import math
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import prepare_data
import train
from support import files, tokens as codecs
from support.testing import TEXT, Server, SMALL, run, rows, ends_in_one_line


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
