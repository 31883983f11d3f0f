"""prepare_data.py: texts, tokens, tasks."""
import base64
import functools
import hashlib
import json
import math
import os
import re
import sys
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import prepare_data
import train
from support import files, pairs, texts, tokens as codecs
from support.pairs import learn_pairs
from support.script import Unusable
from support.testing import TEXT, Server, SMALL, run, rows, all_files, ends_in_one_line


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
    # The commonest pair, then the next.
    first = prepare_data.bpe_entry(["ab ab abc"], 2)["tokens"][256:]
    assert [base64.b64decode(t) for t in first] == [b"ab", b" ab"]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(None))


@pytest.mark.parametrize("data", [None, b"<html>not the file</html>", b"x" * 3_000_000])
def test_embedded_corpus_when_the_download_fails_or_is_wrong(here, monkeypatch, capsys, data):
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(data))
    prepare_data.prepare()
    err = capsys.readouterr().err
    assert "EMBEDDED CORPUS" in err and ("no network" if data is None else "sha256") in err
    meta, _, tokens = prepare_data.load("shakespeare")
    assert meta["source"].startswith("embedded") and len(tokens["train"]) > 300_000


def serve_shakespeare(monkeypatch):
    """From now on tiny Shakespeare is TEXT, and can be downloaded."""
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    monkeypatch.setattr(prepare_data, "SHAKESPEARE_SHA256", sha256)
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(TEXT.encode()))


def text_in(dataset):
    """What a data set says, training and validation."""
    _, codec, tokens = prepare_data.load(dataset)
    return [codec.decode(tokens[split].tolist()) for split in ("train", "val")]


CUT = int(len(TEXT) * 0.9)


def test_a_text_that_is_there_needs_no_network_again(here, monkeypatch, capsys):
    serve_shakespeare(monkeypatch)
    prepare_data.prepare()
    before = all_files()
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(None))
    assert prepare_data.prepare(tokenizer="bpe:10") == "shakespeare-bpe10"
    meta, _, _ = prepare_data.load("shakespeare-bpe10")
    assert meta["tokenizer"] == "bpe:10" and meta["source"] == prepare_data.SHAKESPEARE_URL
    assert text_in("shakespeare-bpe10") == [TEXT[:CUT], TEXT[CUT:]]
    assert prepare_data.prepare() == "shakespeare"
    assert {path: data for path, data in all_files().items() if path in before} == before
    assert "EMBEDDED" not in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["shakespeare", "mine"])
@pytest.mark.parametrize("first", ["char", "bpe:40"])
def test_a_given_text_is_kept_and_used_again(here, offline, capsys, dataset, first):
    """After --input, with no network and without the file: the case of README's own command."""
    flags = [f"--dataset={dataset}", "--input=text.txt", f"--tokenizer={first}"]
    assert run(prepare_data, *flags) == 0
    Path("text.txt").unlink()
    before = all_files()
    name = f"{dataset}-bpe20"
    if dataset == "shakespeare":
        capsys.readouterr()
        assert run(prepare_data, "--tokenizer=bpe:20") == 0
        assert f"train.py --dataset={name}\n" in capsys.readouterr().err
    else:
        assert run(prepare_data, f"--dataset={name}") == 0
    assert {path: data for path, data in all_files().items() if path in before} == before
    assert text_in(name) == [TEXT[:CUT], TEXT[CUT:]]
    assert prepare_data.load(name)[0]["source"] == "file: text.txt"
    assert run(prepare_data, f"--dataset={dataset}") == 0                   # the same once more
    assert {path: data for path, data in all_files().items() if path in before} == before
    for tokenizer in ("bpe:7", first):                                      # there and back
        assert run(prepare_data, f"--dataset={dataset}", f"--tokenizer={tokenizer}") == 0
        assert text_in(dataset) == [TEXT[:CUT], TEXT[CUT:]]
    assert {path: data for path, data in all_files().items() if path in before} == before


def test_the_embedded_corpus_gives_way_and_never_takes_a_place(here, monkeypatch, offline, capsys):
    prepare_data.prepare()
    old = prepare_data.load("shakespeare")[0]
    prepare_data.prepare()
    assert prepare_data.load("shakespeare")[0] == old
    assert capsys.readouterr().err.count("EMBEDDED CORPUS") == 2
    serve_shakespeare(monkeypatch)
    prepare_data.prepare(tokenizer="bpe:10")            # now that it can be had
    prepare_data.prepare()
    for name in ("shakespeare", "shakespeare-bpe10"):
        assert prepare_data.load(name)[0]["source"] == prepare_data.SHAKESPEARE_URL
    Path("data/shakespeare/meta.json").unlink()
    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", Server(None))
    prepare_data.prepare(tokenizer="bpe:10")            # its own text is nearer than a fallback
    assert prepare_data.load("shakespeare-bpe10")[0]["source"] == prepare_data.SHAKESPEARE_URL


def test_other_tokens_have_a_name_of_their_own_unless_one_is_given(here, offline, capsys):
    Path("other.txt").write_text(TEXT.upper(), encoding="utf-8")
    for flags, name, tokenizer in (
            (["--input=text.txt"], "text", "char"),
            (["--input=text.txt", "--tokenizer=bpe:9"], "text-bpe9", "bpe:9"),
            (["--input=text.txt", "--tokenizer=char"], "text", "char"),
            (["--input=other.txt", "--dataset=mine", "--tokenizer=bpe:9"], "mine", "bpe:9"),
            (["--dataset=mine"], "mine", "bpe:9"),                          # as it is
            (["--dataset=mine-char"], "mine-char", "char"),
            (["--dataset=mine-bpe", "--tokenizer=bpe:5"], "mine-bpe", "bpe:5"),
            (["--dataset=mine", "--input=text.txt"], "mine", "bpe:9"),
            (["--input=text.txt", "--dataset=shakespeare", "--tokenizer=bpe:3"],
             "shakespeare", "bpe:3"),
            ([], "shakespeare", "bpe:3"),
            (["--tokenizer=char"], "shakespeare-char", "char"),
            (["--tokenizer=bpe:3"], "shakespeare", "bpe:3")):
        capsys.readouterr()
        assert run(prepare_data, *flags) == 0, flags
        assert f"train.py --dataset={name}\n" in capsys.readouterr().err, flags
        assert prepare_data.load(name)[0]["tokenizer"] == tokenizer, flags
    assert prepare_data.load("text-bpe4")[0]["tokenizer"] == "bpe:4"        # prepares itself
    assert run(train, "--dataset=text-bpe6", *SMALL[1:]) == 0
    for name in ("nobody-bpe4", "nobody", "text-bpe", "text-char5", "shakespeare-10"):
        with pytest.raises(Unusable, match=f"no .*{name}; to make it"):
            prepare_data.load(name)
        assert not Path("data", name).exists()
    for name in ("text-bpe0", "text-bpe65281", "shakespeare-bpe99999999"):
        with pytest.raises(Unusable, match="from 1 to 65280"):
            prepare_data.load(name)
        assert not Path("data", name).exists()


def test_a_data_set_of_unknown_tokens_is_replaced_by_a_given_text(here):
    """Once a task, or written by another program: a text cannot have the tokens that it names."""
    for said in ("numbers", "bpe:70000", "", 7, None):
        prepare_data.prepare("mine", "char", "text.txt")
        path = Path("data/mine/meta.json")
        meta = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**meta, "tokenizer": said}), encoding="utf-8")
        prepare_data.prepare("mine", input="text.txt")
        assert prepare_data.load("mine")[0]["tokenizer"] == "char"


def test_a_name_that_follows_replaces_no_other_text(here, capsys):
    """The same file again does; another one of that name, or tokens of another text, do not."""
    Path("b").mkdir()
    Path("b/text.txt").write_text(TEXT.upper(), encoding="utf-8")
    assert run(prepare_data, "--input=text.txt") == 0 == run(prepare_data, "--input=text.txt")
    before = all_files()
    err = ends_in_one_line(prepare_data, ["--input=b/text.txt"], capsys)
    assert "another text (file: text.txt)" in err and all_files() == before
    assert run(prepare_data, "--input=b/text.txt", "--dataset=text") == 0
    assert text_in("text")[0] == TEXT.upper()[:int(len(TEXT.upper()) * 0.9)]
    assert run(prepare_data, "--input=text.txt", "--dataset=shakespeare") == 0
    prepare_data.prepare("shakespeare-bpe9", "bpe:9", "b/text.txt")
    before = all_files()
    assert "another text" in ends_in_one_line(prepare_data, ["--tokenizer=bpe:9"], capsys)
    assert all_files() == before


def test_data_are_prepared_once_and_read_whole(here, monkeypatch, capsys):
    """Of two first runs at once one prepares, the other waits. A reader waits for who replaces."""
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
           "👩\u200d🚀", "e\u0301te\u0301", "٣٤٥", "a\u200bb", "a\ufeffb", "a\u180eb",
           "a\u0378b", "a\ue000b", "ὀδύσσεια", "日本語", "Việt", "naïve", "a\u0308\u0323"]


@pytest.mark.parametrize("word", SCRIPTS)
def test_learned_word_is_one_token_in_every_script(word):
    codec = codecs.Codec(prepare_data.bpe_entry([f"{word} " * 100], 100))
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
    encoded = [base64.b64encode(token).decode() for token in tokens]
    codec = codecs.Codec({"kind": "bpe", "pattern": "words", "tokens": encoded})
    assert [tokens[t] for t in codec.encode(text)] == pieces
    codes = np.random.default_rng(0).choice([9, 10, 13, *range(32, 127)], 20_000)
    ascii_text = "".join(map(chr, codes))
    # As GPT-2's, without its 's and 'll.
    plain = r" ?[A-Za-z]+| ?[0-9]+| ?[^A-Za-z0-9\s]+|\s+(?!\S)|\s+"
    assert re.findall(words, ascii_text) == re.findall(plain, ascii_text)


@pytest.mark.parametrize("alphabet", ["ACGT", "abcdefghijklmnopqrstuvwxyz", " ", "-"])
def test_one_line_without_a_space_takes_no_time(alphabet):
    line = "".join(np.random.default_rng(0).choice(list(alphabet), 100_000))
    start = time.process_time()
    codec = codecs.Codec(prepare_data.bpe_entry([line], 200))
    assert codec.decode(codec.encode(line)) == line and time.process_time() - start < 3
    assert max(map(len, re.findall(codecs.WORDS, line))) <= 33


@pytest.mark.parametrize("text, merges", [
    ("aaa aaaa abab ababa banana bandana " * 3 + TEXT[:1500], 60),
    ("aaaaaaaaa aaaaa aaa aa " * 9 + "aab " * 4, 5)])
def test_bpe_learns_what_counting_anew_learns(text, merges):
    """Each merge from scratch: all pairs of all words counted, the most frequent one joined."""
    words = [[bytes([b]) for b in word.encode()] for word in re.findall(codecs.WORDS, text)]
    merged = []
    for _ in range(merges):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:]))
        a, b = max(pairs, key=lambda pair: (pairs[pair], pair))
        merged.append(a + b)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (a, b):
                    word[i:i + 2] = [a + b]
                i += 1
    learned = prepare_data.bpe_entry([text], merges)["tokens"][256:]
    assert [base64.b64decode(token) for token in learned] == merged


def test_text_that_is_too_short_to_validate_is_refused(here, capsys):
    """Also when the validation split has two characters, but is one token."""
    Path("short.txt").write_text("ab" * 10, encoding="utf-8")
    Path("shorter.txt").write_text("abc", encoding="utf-8")
    for flags in (["--input=short.txt", "--tokenizer=bpe:1"], ["--input=shorter.txt"]):
        assert "2 tokens" in ends_in_one_line(prepare_data, flags, capsys)
    assert not Path("data").exists()
    prepare_data.prepare("mine", input="text.txt")
    meta = json.loads(Path("data/mine/meta.json").read_text(encoding="utf-8"))
    Path("data/mine/val.bin").write_bytes(b"\1\0")
    Path("data/mine/meta.json").write_text(json.dumps({**meta, "val_tokens": 1}), encoding="utf-8")
    with pytest.raises(Unusable, match="needs two"):
        prepare_data.load("mine")


def test_text_is_named_after_its_file(here, capsys):
    for file, name in (("my text (1).txt", "my-text-1"), ("../x/.hidden.txt", "hidden"),
                       ("parity.txt", "parity-text")):
        path = Path("files", file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one line " * 20, encoding="utf-8-sig")     # with a mark, as on Windows
        assert run(prepare_data, f"--input={path}") == 0
        err = capsys.readouterr().err
        assert f"python train.py --dataset={name}\n" in err and "vocabulary of 6" in err, err
        assert prepare_data.load(name)[0]["tokenizer"] == "char"


def test_texts_of_different_names_do_not_share_a_data_set():
    names = ["日本.txt", "中国.txt", "日本1.txt", "中国1.txt", "résumé.txt", "rúsumú.txt",
             "Привет.txt", "мир.txt", "--.txt", "!!.txt", "a.txt", "\udce9.txt", "\udce8.txt",
             "x" * 80 + "1.txt", "x" * 80 + "2.txt"]
    folders = [prepare_data.name_for_files([name]) for name in names]
    folders.append(prepare_data.name_for_files(["a.txt", "b.txt"]))
    assert len(set(folders)) == len(folders)
    for folder in folders:
        assert prepare_data.folder_of(f"{folder}-bpe65280").parent == Path("data")
    one_name_on_two_systems = ["r\xe9sum\xe9.txt", "re\u0301sume\u0301.txt"]
    assert len({prepare_data.name_for_files([name]) for name in one_name_on_two_systems}) == 1


def several_texts():
    """Writes 0.txt, 1.txt and 2.txt, the last one with a mark. Returns their contents."""
    contents = ["a" * 100 + "\r\n", "b" * 50, "日本" * 15]
    for n, encoding in enumerate(("utf-8", "utf-8", "utf-8-sig")):
        Path(f"{n}.txt").write_text(contents[n], encoding=encoding, newline="")
    Path("own.txt").write_text("own text", encoding="utf-8")
    return contents


def test_several_texts_are_joined_and_each_is_cut(here, capsys):
    contents = several_texts()
    assert run(prepare_data, "--input=0.txt", "--input=1.txt", "--input=2.txt") == 0
    assert "train.py --dataset=0-1-2\n" in capsys.readouterr().err
    cuts = [int(len(content) * 0.9) for content in contents]
    train_text = "".join(content[:cut] for content, cut in zip(contents, cuts))
    val_text = "".join(content[cut:] for content, cut in zip(contents, cuts))
    assert text_in("0-1-2") == [train_text, val_text]
    assert prepare_data.load("0-1-2")[0]["source"] == "file: 0.txt, 1.txt, 2.txt"
    assert run(prepare_data, "--dataset=0-1-2-bpe1") == 0
    assert text_in("0-1-2-bpe1") == [train_text, val_text]


def test_a_validation_text_of_ones_own(here):
    contents = several_texts()
    flags = ["--input=0.txt", "--input=1.txt", "--input=2.txt", "--val_input=own.txt"]
    assert run(prepare_data, *flags, "--dataset=mine") == 0
    assert text_in("mine") == ["".join(contents), "own text"]
    assert run(prepare_data, "--dataset=mine-bpe1") == 0
    assert text_in("mine-bpe1") == ["".join(contents), "own text"]


@pytest.mark.parametrize("flags, named", [
    (["--val_input=own.txt"], "--input"),
    (["--input=0.txt", "--val_input=no.txt"], "no.txt"),
    (["--input=0.txt", "--input=no.txt"], "no.txt"),
    (["--input=0.txt", "--val_input=a.txt", "--val_input=b.txt"], "2 times"),
    ([f"--input={os.devnull}"], "only once"),
    (["--input=0.txt", f"--val_input={os.devnull}"], "only once"),
    (["--input=own.txt", "--val_input=empty.txt"], "too short"),
    (["--input=empty.txt", "--val_input=own.txt"], "too short")])
def test_texts_that_cannot_be_used_leave_nothing(here, capsys, flags, named):
    several_texts()
    Path("empty.txt").touch()
    assert named in ends_in_one_line(prepare_data, flags, capsys)
    assert not Path("data").exists()


def test_the_cut_is_part_of_the_fingerprint():
    fingerprints = []
    for cut in (CUT - 1, CUT, CUT + 1):
        fingerprints.append(texts.text_of("", [TEXT[:cut]], [TEXT[cut:]]).sha256)
    assert len(set(fingerprints)) == 3
    assert fingerprints[1] == hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.mark.parametrize("name, known", {
    "a": "32281cbd98c1dd2f", "b": "7e6737747f45526f",
    "parity": "73bbcd083e246350", "swaps": "d747c8463bcb8d33"}.items())
def test_data_are_what_they_always_were(here, name, known):
    """The files of the former version, to the last bit."""
    prepare_data.prepare("a", "char", "text.txt")
    prepare_data.prepare("b", "bpe:40", "text.txt")
    prepare_data.prepare("parity", length=9, rows=200)
    prepare_data.prepare("swaps", length=9, rows=200, seed=3)
    digest = hashlib.sha256()
    for path in sorted(Path("data", name).iterdir()):
        if path.name != ".lock":
            digest.update(path.read_bytes())
    assert digest.hexdigest().startswith(known)


# What parts may cut in two: line ends, marks, surrogate pairs, characters of 2, 3 and 4 bytes,
# words, long rows of one kind.
PIECES = ["a", "'s", "'ll ", "don't", "e\u0301", " ", "  ", "\n", "\r\n", "\t", "🙂", "日本", "。",
          "、x", "ぁ", "9", "12,3", "\x1c", "\x85", "\xa0", "\u3000", "!'s", "--", "_x", "٣",
          "\u200d", "\ufeff", "ab cd ", "x" * 40, " " * 40, "7" * 40, "." * 40, "日" * 40, "a\n\n b"]


def tricky_text(seed, count=400):
    return "".join(np.random.default_rng(seed).choice(PIECES, count))


@pytest.mark.parametrize("pattern", ["words", "gpt2"])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_a_text_in_parts_are_those_of_all_of_it(pattern, seed):
    text = tricky_text(seed)
    tokens = [base64.b64encode(token).decode() for token in learn_pairs([text], 300)]
    codec = codecs.Codec({"kind": "bpe", "pattern": pattern, "tokens": tokens})
    pieces = re.findall(codecs.WORDS, text) if pattern == "words" else [text]
    whole = [token for piece in pieces for token in codec.engine.encode_ordinary(piece)]
    assert codec.encode(text) == whole
    rng = np.random.default_rng(seed)
    for most in (1, 2, 3, 10, 50, 1000):
        cuts = [0, *np.cumsum(rng.integers(0, most + 1, size=len(text))), 10 ** 9]
        parts = [text[a:b] for a, b in zip(cuts, cuts[1:])]
        assert [token for some in codec.encode_parts(parts) for token in some] == whole
        assert learn_pairs(parts, 30) == learn_pairs([text], 30)
        numbers = [whole[a:b] for a, b in zip(cuts, cuts[1:])]
        assert "".join(codec.decode_parts(numbers)) == text


def test_pairs_are_learned_alike_in_blocks_of_any_size(monkeypatch):
    text = TEXT[:3000]
    whole = learn_pairs([text], 100)
    for block, size in ((1, 1), (50, 7), (1000, 100)):
        monkeypatch.setattr(pairs, "BLOCK", block)
        monkeypatch.setattr(pairs, "SLICE", size)
        parts = [text[n:n + 100] for n in range(0, len(text), 100)]
        assert learn_pairs(parts, 100) == whole


def test_as_many_tokens_as_there_are_numbers():
    """The last one has the number that stands for the end of a word while pairs are learned."""
    tokens = learn_pairs(["ab" * 15 + " "] * 3, 65280)
    assert len(tokens) < 300                                    # there were no pairs left
    assert len(set(tokens)) == len(tokens) and ("ab" * 15).encode() in tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "END", 260)
        assert learn_pairs(["ab" * 15 + " "], 5) == tokens[:261]


@pytest.mark.parametrize("part", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("tokenizer", ["char", "bpe:30"])
@pytest.mark.parametrize("text", [tricky_text(1), "\ufeff" + tricky_text(2), "日本\r\n" * 30,
                                  "x" * 5000, "\ufeff\ufeff" + "🙂" * 90])
def test_data_do_not_depend_on_the_size_of_parts(here, monkeypatch, part, tokenizer, text):
    Path("a.txt").write_bytes(text.encode())
    prepare_data.prepare("a", tokenizer, "a.txt")
    before = all_files()
    monkeypatch.setattr(texts, "PART", part)
    prepare_data.prepare("a", tokenizer, "a.txt")
    assert all_files() == before
    prepare_data.prepare("a")                               # from its own tokens
    assert all_files() == before
    text = text.removeprefix("\ufeff")
    cut = int(len(text) * 0.9)
    assert text_in("a") == [text[:cut], text[cut:]]


@pytest.mark.parametrize("data, place", [
    (b"\xe9 and so on", 0), (b"x" * 1000 + b"\xe9 and so on", 1000),
    (b"\xef\xbb\xbfna\xefve", 5), (b"cut \xe6\x97", 4)])
@pytest.mark.parametrize("part", [1, 7, 1 << 17])
def test_what_is_not_utf8_is_said_where(here, monkeypatch, capsys, data, place, part):
    monkeypatch.setattr(texts, "PART", part)
    Path("bad.txt").write_bytes(data)
    err = ends_in_one_line(prepare_data, ["--input=bad.txt"], capsys)
    assert "bad.txt as UTF-8" in err and f"(byte {place:,} is" in err
    assert not Path("data").exists()


@pytest.fixture
def small_parts(monkeypatch):
    """All that has a fixed size while data are prepared has a 64th of it, and so may the text."""
    for module, name in ((texts, "PART"), (pairs, "BLOCK"), (pairs, "SLICE")):
        monkeypatch.setattr(module, name, getattr(module, name) // 64)
    few_words = SimpleNamespace(lru_cache=lambda size: functools.lru_cache(size // 64))
    monkeypatch.setattr(codecs, "functools", few_words)


def peak_of_preparing(words, tokenizer):
    """Bytes of memory at most, from a file of so many words, which are all different, the hardest
    for pairs, and from its tokens; and the size of the file."""
    text = np.random.default_rng(0).integers(97, 123, size=(words, 6), dtype=np.uint8)
    text[:, 5] = ord(" ")
    Path("words.txt").write_bytes(text.tobytes())
    tracemalloc.start()
    prepare_data.prepare("mine", tokenizer, "words.txt")
    prepare_data.prepare("mine")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, text.size


@pytest.mark.parametrize("tokenizer, most", [("char", 0.5), ("bpe:10", 3)])
def test_preparing_takes_little_memory(here, small_parts, tokenizer, most):
    """For each byte of text that is added, so many more."""
    peak_of_preparing(1000, tokenizer)                          # what stays is there now
    peak, size = peak_of_preparing(10_000, tokenizer)
    larger_peak, larger_size = peak_of_preparing(30_000, tokenizer)
    assert larger_peak - peak < most * (larger_size - size)


@pytest.mark.parametrize("flags, call", [
    (["--dataset=nope"], lambda: prepare_data.load("nope")),
    (["--dataset=nope"], lambda: prepare_data.prepare("nope")),
    (["--dataset=a/b"], lambda: prepare_data.load("a/b")),
    (["--dataset=broken"], lambda: prepare_data.load("broken")),
    (["--input=no.txt"], lambda: prepare_data.prepare(input="no.txt")),
    (["--input=text.txt", "--tokenizer=bpe:0"],
     lambda: prepare_data.prepare("mine", "bpe:0", "text.txt")),
    (["--dataset=parity", "--length=5", "--rows=2000"],
     lambda: prepare_data.prepare("parity", length=5, rows=2000)),
    (["--dataset=file", "--input=text.txt"],
     lambda: prepare_data.prepare("file", input="text.txt"))])
def test_from_python_nothing_exits(here, capsys, flags, call):
    """The line is that of the script."""
    Path("data/broken").mkdir(parents=True)
    Path("data/broken/meta.json").write_text("{", encoding="utf-8")
    Path("data/file").touch()
    with pytest.raises(Unusable) as raised:
        call()
    assert capsys.readouterr().err == ""
    assert ends_in_one_line(prepare_data, flags, capsys) == f"error: {raised.value}\n"


def test_of_a_large_file_a_sample_is_read(here, monkeypatch):
    prepare_data.prepare("mine", "char", "text.txt")
    looks = []
    monkeypatch.setattr(prepare_data, "SAMPLE", 4)
    monkeypatch.setattr(prepare_data, "check", lambda tokens, *rest: looks.append(tokens.size))
    meta, _, _ = prepare_data.load("mine")
    assert sum(looks) <= 2 * 64 * 4 < meta["val_tokens"]


@pytest.mark.parametrize("name", ["train", "val"])
def test_what_is_used_of_a_large_file_is_checked(here, monkeypatch, capsys, name):
    prepare_data.prepare("mine", "char", "text.txt")
    monkeypatch.setattr(prepare_data, "SAMPLE", 4)
    path, place = Path(f"data/mine/{name}.bin"), 306            # which is not in the sample
    damaged = np.fromfile(path, "<u2")
    damaged[place] = 999
    damaged.tofile(path)
    tokens = prepare_data.load("mine")[2][name]
    tokens[np.arange(place)], tokens[place + 1]
    for places in (place, [place], np.array([[place, 5]]), (np.array([place]),)):
        with pytest.raises(Unusable, match="token 999 of a vocabulary of 41"):
            tokens[places]
    with pytest.raises(Unusable, match="token 999"):
        tokens[:400].reshape(4, 100)[np.array([3])]
    flags = [flag for flag in SMALL if not flag.startswith("--max_iters")]
    assert "damaged" in ends_in_one_line(train, [*flags, "--max_iters=400"], capsys)
    damaged[-1] = 999                                           # which is
    damaged.tofile(path)
    with pytest.raises(Unusable, match=f"{name}.bin: token 999"):
        prepare_data.load("mine")


def test_damaged_data_are_neither_text_nor_replaced(here, offline, capsys):
    """Tokens that are all in the vocabulary, but say something else."""
    prepare_data.prepare("mine", "char", "text.txt")
    tokens = np.fromfile("data/mine/val.bin", "<u2")
    tokens[7] = (tokens[7] + 1) % 41
    tokens.tofile("data/mine/val.bin")
    before = all_files()
    for flags in (["--dataset=mine"], ["--dataset=mine-bpe5"],
                  ["--dataset=mine", "--tokenizer=bpe:5"]):
        assert "mine is damaged" in ends_in_one_line(prepare_data, flags, capsys)
        assert all_files() == before
    assert run(prepare_data, "--dataset=mine", "--input=text.txt") == 0
    assert text_in("mine") == [TEXT[:CUT], TEXT[CUT:]]


def test_a_task_is_no_text(here, capsys):
    prepare_data.prepare("parity", length=8, rows=120)
    assert "is a task" in ends_in_one_line(prepare_data, ["--dataset=parity-bpe5"], capsys)
    flags = ["--dataset=parity", "--val_input=text.txt"]
    assert "the name of a task" in ends_in_one_line(prepare_data, flags, capsys)


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
            rank = sum(n * math.factorial(4 - k) for k, n in enumerate(smaller))
            assert target == rank
    assert set(x.flat) == set(range(11)) and len(set(y.flat)) > 100


def test_only_a_task_has_a_length(here):
    prepare_data.prepare("mine", "char", "text.txt")
    meta = json.loads(Path("data/mine/meta.json").read_text(encoding="utf-8"))
    Path("data/mine/meta.json").write_text(json.dumps({**meta, "length": [16]}), encoding="utf-8")
    assert run(train, *SMALL) == 0
    small = [flag for flag in SMALL[1:] if not flag.startswith("--block_size")]
    small += ["--max_iters=3", "--eval_tokens=1000", "--curriculum="]
    assert run(train, "--dataset=swaps", *small, "--out_dir=swaps") == 0
    assert rows("swaps")[0]["tokens"] == 3 * 4 * 32         # and no curriculum if one says so


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
    train_rows = {tuple(row) for row in data["train"].tolist()}
    val_rows = {tuple(row) for row in data["val"].tolist()}
    assert len(train_rows) == 180 and len(val_rows) == 20 and not train_rows & val_rows
    first = data["train"].copy()
    prepare_data.prepare("parity", length=9, rows=200)
    assert np.array_equal(first, read()["train"])
    prepare_data.prepare("parity", length=9, rows=200, seed=1)
    assert not np.array_equal(first, read()["train"])
