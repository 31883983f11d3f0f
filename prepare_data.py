"""Turn text into data/NAME/: train.bin and val.bin (uint16 token numbers) and meta.json (codec, provenance).

    python prepare_data.py                                  tiny Shakespeare, a token per character
    python prepare_data.py --tokenizer=bpe:1024             the same, 1,024 merges learned from it
    python prepare_data.py --dataset=mine --input=FILE      any UTF-8 text, into data/mine/
    python prepare_data.py --dataset=parity --length=32     a task, not text: inputs and targets; or swaps

The first 90% of the characters are for training, the rest for validation, as in nanoGPT. Tasks also write
train_y.bin and val_y.bin, as their targets are not the next token.
"""
import argparse
import base64
import codecs
import difflib
import hashlib
import itertools
import json
import os
import re
import shlex
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import tiktoken

try:
    import fcntl
except ImportError:     # on Windows
    fcntl = None
    import msvcrt

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_BYTES = 1_115_394
MAX_VOCAB = 2 ** 16             # what uint16 can number
MAX_SEED = 2 ** 32 - 1

# What settings of these scripts are called elsewhere, in nanoGPT or every day.
ELSEWHERE = {
    "learning_rate": "lr", "max_iters": "steps iters iterations epochs max_steps num_steps n_steps",
    "n_layer": "layers depth num_layers", "n_head": "heads", "n_embd": "dim width embd d_model hidden",
    "batch_size": "batch bs", "block_size": "context ctx seq_len context_length sequence_length",
    "weight_decay": "wd", "warmup_iters": "warmup warmup_steps", "out_dir": "out", "dataset": "data",
    "lrt_subsets": "subsets", "lrt_sweeps": "sweeps", "prompt": "start", "input": "file text",
    "temperature": "temp", "num_samples": "n samples", "max_new_tokens": "tokens max_tokens length",
}


# ---- Shared by all scripts: how to fail, settings, files ---------------------------------------------------

def fail(message):
    """One line on stderr, exit status 2."""
    print("error:", " ".join(str(message).splitlines()), file=sys.stderr)
    sys.exit(2)


def script(main):
    """Decorator of every script's main(argv): what can end any of them, at any place, ends it in order."""
    def guarded(argv=None):
        for stream in (sys.stdout, sys.stderr):     # a terminal that cannot show a character shows a "?"
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            return main(argv)
        except KeyboardInterrupt:                   # Ctrl-C
            sys.exit(130)
        except BrokenPipeError:                     # a reader like head that has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except (OSError, MemoryError, RuntimeError, ValueError) as e:
            text = next(iter(str(e).splitlines()), "")
            if isinstance(e, OSError):                  # a folder one may not enter, a name too long, ...
                fail(f"{e.filename}: {e.strerror}" if e.filename else e)
            if re.search("embedded null|home directory", text):
                fail(f"not a path of a file or folder: {text}")
            if isinstance(e, MemoryError) or re.search("(out of|not enough|allocate) memory", str(e)):
                fail(f"not enough memory; smaller sizes need less ({text:.150})")
            raise
    return guarded


def option(default, help, allowed=None):
    """A field of a dataclass of settings. allowed: (least, most), a list of values, or None for any."""
    rule = {int: "a whole number", float: "a number", str: "text"}[type(default)]
    if isinstance(allowed, tuple):
        rule += " from {} to {}".format(*(f"{n:,}" if isinstance(n, int) else f"{n:g}" for n in allowed))
    elif allowed:
        rule = " or ".join(str(value) for value in allowed if value != "")
    return field(default=default, metadata={"help": help, "allowed": allowed, "rule": rule})


def value_of(f, text):
    """What was typed for an option, as its type. Ends with an error if it is not allowed."""
    allowed = f.metadata["allowed"] or (-sys.float_info.max, sys.float_info.max)
    if isinstance(allowed, list) and 1 in allowed:
        text = {"true": "1", "yes": "1", "false": "0", "no": "0"}.get(text.lower(), text)
    try:
        value = f.type(text)
    except ValueError:
        value = None
    if value is None or not (value in allowed if isinstance(allowed, list) else
                             f.type is str or allowed[0] <= value <= allowed[1]):       # fails for a nan, too
        fail(f"--{f.name}={text}: must be {f.metadata['rule']}")
    return value


def parse(settings_class, doc, argv, **presets):
    """(settings, given): the command line as an instance of a dataclass of options, each a flag --name=value,
    and the names that were typed. presets are other defaults than the dataclass's."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message}; settings are written --name=value, and -h lists them")
    options = {f.name: f for f in fields(settings_class)}
    for name, f in options.items():
        text, rule, default = f.metadata["help"], f.metadata["rule"], presets.get(name, f.default)
        notes = [rule] if f.metadata["allowed"] and len(rule) < 32 else []
        notes += [f"default: {default}"] if default != "" and "(default" not in text else []
        text += f" ({'; '.join(notes)})" if notes else ""
        parser.add_argument(f"--{name}", type=lambda text, f=f: value_of(f, text), default=argparse.SUPPRESS,
                            metavar="X", help=text.replace("%", "%%"))
    typed, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        name = flag.lstrip("-").replace("-", "_").lower()
        near = [here for here, words in ELSEWHERE.items() if here in options and name in words.split()]
        near += difflib.get_close_matches(name, options, n=1, cutoff=0.85)
        parser.error(f"there is no {flag}" + (f" (did you mean --{near[0]}?)" if near else ""))
    return settings_class(**{**presets, **vars(typed)}), tuple(vars(typed))


def command(*words):
    """A line that a shell takes for a command of these words."""
    if os.name == "nt":
        return " ".join(w if re.fullmatch(r"[\w@+=:,./\\-]+", w) else f'"{w}"' for w in map(str, words))
    return shlex.join(map(str, words))


HELD = []       # the open files of own(): one that is forgotten is closed, and its lock gone


def own(folder, what, wait=False):
    """Keep other processes out of a folder, which is made if need be. Returns an open file: the lock lasts
    until it is closed or the process ends, however it ends. Who is second waits, or fails, with the advice to
    use another `what`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = open(Path(folder) / ".lock", "ab")
    except OSError as e:
        fail(f"{what}: {folder} cannot be used: {e.strerror}")
    HELD.append(lock)
    for tries in itertools.count():
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                lock.seek(0)
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
            return lock
        except (BlockingIOError, PermissionError):      # the latter is Windows'
            if not wait:
                lock.close()
                fail(f"{folder} is in use by another run; wait for it or use another {what}")
        except OSError:                                 # a file system without locks
            return lock
        if tries == 10:
            print(f"waiting for another run that uses {folder}", file=sys.stderr)
        time.sleep(0.1)


def write_atomic(path, write, *more):
    """Create or replace a file in one step: write(f) fills a temporary neighbour, which then takes its name.
    More pairs of path and write: none takes its name before all are written."""
    files = [(Path(p), Path(f"{p}.tmp"), w) for p, w in zip((path, *more[::2]), (write, *more[1::2]))]
    try:
        for path, temporary, write in files:
            with open(temporary, "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
        for path, temporary, _ in files:
            os.replace(temporary, path)
    except (OSError, RuntimeError) as e:        # torch.save makes the latter of the former
        for _, temporary, _ in files:
            if temporary.is_file():
                temporary.unlink()
        fail(f"cannot write {path}: {getattr(e, 'strerror', None) or e}")


def read_text(path):
    """The text of a UTF-8 file, line ends as they are."""
    try:
        return Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as e:
        fail(f"cannot read {path or 'a file with no name'}: {e.strerror}")
    except UnicodeDecodeError as e:
        fail(f"{path} is not UTF-8 text (byte {e.object[e.start]:#04x} at {e.start:,}); "
             "convert it, for example with iconv -t UTF-8")


# ---- Tokens ------------------------------------------------------------------------------------------------

# How text is cut before byte pairs are merged; meta.json names one of these, so that no file brings a pattern
# of its own, which could take for ever. "words": words, numbers and signs, each with the space before it, and
# white space. Python's re, which learns, and tiktoken's engine, which encodes, differ in classes like \w, but
# not in ranges: a letter is what is no space, sign or digit here, and so are the marks that many scripts put
# on letters. 32 at most, or a text without spaces would take for ever. "learned": of older data.
SPACE = r"\x09-\x0d\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SIGN = (r"\x00-\x08\x0e-\x1f\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7f\xa1-\xbf\xd7\xf7\u060c\u061b\u061f\u06d4"
        r"\u0964\u0965\u2010-\u2027\u2030-\u205e\u3001-\u3003\u3008-\u301f\uff01-\uff0f\uff1a-\uff20")
PATTERNS = {
    "words": f" ?[^{SPACE}{SIGN}0-9]{{1,32}}| ?[0-9]{{1,32}}| ?[{SIGN}]{{1,32}}"
             f"|[{SPACE}]{{1,32}}(?![^{SPACE}])|[{SPACE}]{{1,32}}",
    "learned": r" ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+",
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


class Codec:
    """Text to token numbers and back, as the "codec" entry of meta.json and checkpoints says, plain values:
    {"kind": "char", "chars": [...]}, {"kind": "bpe", "pattern": ..., "tokens": [base64 of bytes]} or, for
    numbers with spaces between, {"kind": "numbers", "count": ..., "inputs": how many can be asked}.
    token_bytes: the bytes of each token. Raises ValueError, KeyError or TypeError if the entry is another."""

    def __init__(self, entry):
        self.kind = entry["kind"]
        if self.kind == "char":
            self.index = {c: i for i, c in enumerate(entry["chars"])}
            if not len(self.index) == len(entry["chars"]) == sum(map(len, self.index)) > 0:
                raise ValueError("the characters are not single ones, all different")
            self.token_bytes = [c.encode() for c in entry["chars"]]
        elif self.kind == "bpe":
            self.token_bytes = [base64.b64decode(t) for t in entry["tokens"]]
            ranks = {t: i for i, t in enumerate(self.token_bytes)}
            if len(ranks) != len(self.token_bytes) or not ranks.keys() >= {bytes([b]) for b in range(256)}:
                raise ValueError("the tokens are not all different, or a single byte is not among them")
            self.encoding = tiktoken.Encoding("bpe", pat_str=PATTERNS[entry["pattern"]],
                                              mergeable_ranks=ranks, special_tokens={})
        elif self.kind == "numbers":
            if not 1 <= entry["inputs"] <= entry["count"] <= MAX_VOCAB:
                raise ValueError(f"{entry['count']} numbers, {entry['inputs']} of them inputs")
            self.index = {str(i): i for i in range(entry["inputs"])}
            self.token_bytes = [f"{i} ".encode() for i in range(entry["count"])]
        else:
            raise ValueError(f"unknown codec {self.kind!r}")
        self.vocab_size = len(self.token_bytes)

    def encode(self, text):
        """Token numbers of a text. Raises ValueError that names what it has no token for."""
        if self.kind == "bpe":
            return self.encoding.encode_ordinary(text)
        items = text if self.kind == "char" else text.split()
        if unknown := sorted(set(items) - set(self.index)):
            known = f"{''.join(self.index)!r:.200}" if self.kind == "char" else \
                f"numbers from 0 to {len(self.index) - 1}, with spaces between"
            raise ValueError(f"no token for {' '.join(map(repr, unknown[:10]))}; known: {known}")
        return [self.index[item] for item in items]

    def start(self):
        """Tokens to begin with where there is no prompt: a line break or, if that has no token, the first."""
        return [self.token_bytes.index(b"\n") if b"\n" in self.token_bytes else 0]

    def decoder(self):
        """A function from token number to text, for streaming: unfinished characters are held back."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: utf8.decode(self.token_bytes[token])

    def decode(self, tokens):
        return b"".join(self.token_bytes[t] for t in tokens).decode("utf-8", errors="replace")


def bpe_entry(pattern, tokens):
    return {"kind": "bpe", "pattern": pattern, "tokens": [base64.b64encode(t).decode() for t in tokens]}


def gpt2_codec():
    """GPT-2's 50,256 tokens, through tiktoken, which downloads them once (or looks in TIKTOKEN_CACHE_DIR)."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as e:      # whatever its download raises
        fail(f"cannot load GPT-2's tokens ({type(e).__name__}); with no network, use bpe:1024 or char")
    return bpe_entry("gpt2", [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)])


def bpe_codec(text, merges):
    """Byte pairs (arXiv:1508.07909) learned from a text: the 256 bytes and up to `merges` more tokens. Each
    joins the most frequent pair of neighbours, a and b; only their pairs with those beside them change."""
    words = Counter(re.findall(PATTERNS["words"], text))
    counts = list(words.values())
    words = [[b"", *(bytes([b]) for b in word.encode()), b""] for word in words]
    pairs, where = Counter(), defaultdict(set)      # how often each pair occurs, and in which words

    def count(w, left, right, sign=1):
        if left and right:                          # not the ends of a word
            pairs[left, right] += sign * counts[w]
            if sign > 0:
                where[left, right].add(w)

    for w, word in enumerate(words):
        for pair in zip(word, word[1:]):
            count(w, *pair)
    tokens, said = [bytes([b]) for b in range(256)], time.monotonic()
    while len(tokens) < 256 + merges and (most := max(pairs.values(), default=0)):
        a, b = max([pair for pair, n in pairs.items() if n == most])
        tokens.append(a + b)
        for w in where.pop((a, b)):
            word, i = words[w], 1
            while i < len(word) - 2:
                if word[i] == a and word[i + 1] == b:
                    count(w, word[i - 1], a, sign=-1)
                    count(w, b, word[i + 2], sign=-1)
                    count(w, word[i - 1], a + b)
                    count(w, a + b, word[i + 2])
                    word[i:i + 2] = [a + b]
                i += 1
        del pairs[a, b]
        if time.monotonic() > said + 5:
            said = time.monotonic()
            print(f"learned {len(tokens) - 256:,} of {merges:,} merges", file=sys.stderr)
    return bpe_entry("words", tokens)


# ---- Tasks: what is asked at a position depends on all inputs so far, in their order -----------------------

def parity(x):
    """Bits; the target is 1 where the number of ones so far is odd. (rows, length) -> the same."""
    return x.cumsum(1) % 2


def swaps(x):
    """Five objects on five places. 0 does nothing, 1 to 10 exchange the objects on one of the 10 pairs of
    places; the target is the number of the arrangement, 0 to 119 in dictionary order. Shapes as above."""
    arrangements = list(itertools.permutations(range(5)))
    operations = [(0, 0), *itertools.combinations(range(5), 2)]
    follower = np.empty((120, 11), dtype=int)       # [arrangement, operation] -> the next arrangement
    for a, (p, (i, j)) in itertools.product(range(120), enumerate(operations)):
        after = list(arrangements[a])
        after[i], after[j] = after[j], after[i]
        follower[a, p] = arrangements.index(tuple(after))
    y, state = np.empty_like(x), np.zeros(len(x), dtype=int)
    for t in range(x.shape[1]):
        y[:, t] = state = follower[state, x[:, t]]
    return y


TASKS = {"parity": (parity, 2, 2), "swaps": (swaps, 11, 120)}    # targets from inputs; how many of both


def task_rows(task, rows, length, rng):
    """Random inputs and their targets, (rows, length) each."""
    target, n_inputs, _ = TASKS[task]
    x = rng.integers(n_inputs, size=(rows, length))
    return x, target(x)


def task_data(task, length, rows, seed):
    """(splits, meta): `rows` different rows of `length` inputs and targets, the last tenth for validation."""
    target, n_inputs, n_targets = TASKS[task]
    if length < 64 and 2 * rows > n_inputs ** length:
        fail(f"--rows={rows}: must be at most half of the {n_inputs ** length:,} rows of --length={length}")
    rng, x = np.random.default_rng(seed), np.empty((0, length), dtype=int)
    while len(x) < rows:
        x = np.unique(np.concatenate([x, task_rows(task, rows, length, rng)[0]]), axis=0)
    x, cut = rng.permutation(x)[:rows], rows - rows // 10
    y, count = target(x), max(n_inputs, n_targets)
    meta = {"task": task, "length": length,
            "source": f"generated: {task}, {rows:,} rows of {length}, seed {seed}",
            "sha256": hashlib.sha256(x.astype("<u2").tobytes()).hexdigest(), "tokenizer": "numbers",
            "codec": {"kind": "numbers", "count": count, "inputs": n_inputs}}
    return {"train": x[:cut], "val": x[cut:], "train_y": y[:cut], "val_y": y[cut:]}, meta


# ---- Text --------------------------------------------------------------------------------------------------

def download(url, size, sha256):
    """The bytes at an address. Raises OSError if they are others, or none come for 10 seconds."""
    with urllib.request.urlopen(url, timeout=10) as response:
        data = response.read(size + 1)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OSError(f"what came from {url} is not the expected file (sha256 differs)")
    return data


def shakespeare(folder):
    """(text, source): tiny Shakespeare from this folder or its public address; else the embedded corpus."""
    path = folder / "input.txt"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHAKESPEARE_SHA256:
        return read_text(path), SHAKESPEARE_URL
    print(f"downloading {SHAKESPEARE_URL}", file=sys.stderr)
    try:
        data = download(SHAKESPEARE_URL, SHAKESPEARE_BYTES, SHAKESPEARE_SHA256)
    except Exception as e:      # whatever a download raises
        from pydoc_data.topics import topics
        print(f"WARNING: no tiny Shakespeare ({e}).\n"
              "WARNING: using the EMBEDDED CORPUS instead, Python's own language reference: other losses\n"
              "WARNING: than the README's. If you have the text in a file:\n"
              "WARNING: python prepare_data.py --dataset=shakespeare --input=FILE", file=sys.stderr)
        source = f"embedded: pydoc_data.topics of Python {sys.version.split()[0]}"
        return "\n".join(topics[name] for name in sorted(topics)), source
    write_atomic(path, lambda f: f.write(data))
    return data.decode(), SHAKESPEARE_URL


def text_data(text, source, tokenizer):
    """(splits, meta) of a text: the first 90 % of its characters for training, the rest for validation."""
    cut = int(len(text) * 0.9)
    if tokenizer == "char":
        entry = {"kind": "char", "chars": sorted(set(text)) or ["?"]}
    else:
        entry = gpt2_codec() if tokenizer == "gpt2" else bpe_codec(text[:cut], merges=int(tokenizer[4:]))
    codec = Codec(entry)
    splits = {"train": codec.encode(text[:cut]), "val": codec.encode(text[cut:])}
    if not splits["train"] or len(splits["val"]) < 2:
        fail(f"{source}: {len(text)} characters are too few; the last tenth, for validation, needs 2 tokens")
    if codec.vocab_size > MAX_VOCAB:
        fail(f"{source}: {codec.vocab_size:,} different characters, more than {MAX_VOCAB:,}; use bpe:1024")
    return splits, {"source": source, "sha256": hashlib.sha256(text.encode()).hexdigest(),
                    "characters": len(text), "tokenizer": tokenizer, "codec": entry}


# ---- data/NAME/ --------------------------------------------------------------------------------------------

def prepare(dataset="shakespeare", tokenizer="char", input=None, length=32, rows=20_000, seed=0,
            data_dir="data", replace=True):
    """Write data_dir/dataset/ and return its path. With replace=False it stays as it is if it is there."""
    folder = Path(data_dir) / dataset
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{,99}", dataset):
        fail(f"--dataset={dataset}: must be up to 100 letters, digits, '_', '-' and '.', to name a folder")
    if not re.fullmatch(r"char|gpt2|bpe:[1-9]\d{,4}", tokenizer) or int(tokenizer[4:] or 0) > MAX_VOCAB - 256:
        fail(f"--tokenizer={tokenizer}: must be char, gpt2 or bpe:N with N from 1 to {MAX_VOCAB - 256}")
    if dataset in TASKS:
        splits, meta = task_data(dataset, length, rows, seed)
    elif input is not None:
        splits, meta = text_data(read_text(input), f"file: {Path(input).name}", tokenizer)
    elif dataset != "shakespeare":
        fail(f"--dataset={dataset} is not in {Path(data_dir).absolute()}; make it with: "
             f"python prepare_data.py --dataset={dataset} --input=FILE")
    with own(folder, "--dataset", wait=True):
        if (folder / "meta.json").exists() and not replace:
            return folder
        if dataset == "shakespeare" and input is None:
            splits, meta = text_data(*shakespeare(folder), tokenizer)
        write_dataset(folder, splits, {"dataset": dataset, **meta})
    return folder


def write_dataset(folder, splits, meta):
    """NAME.bin for each split, and meta.json with the number of tokens in each."""
    files, replaced = [], (folder / "meta.json").exists()
    meta["vocab_size"] = Codec(meta["codec"]).vocab_size
    for split, tokens in splits.items():
        tokens = np.asarray(tokens, dtype="<u2")
        files += [folder / f"{split}.bin", lambda f, tokens=tokens: f.write(tokens.tobytes())]
        meta[f"{split}_tokens"] = tokens.size
    write_atomic(*files, folder / "meta.json", lambda f: f.write(json.dumps(meta).encode()))
    print(f"{folder}{' (replaced)' * replaced}: {meta['source']}: {meta['train_tokens']:,} training tokens, "
          f"{meta['val_tokens']:,} for validation, vocabulary of {meta['vocab_size']:,}", file=sys.stderr)


def load(dataset, data_dir="data"):
    """(meta, codec, splits) of data_dir/dataset, which is prepared if it is missing. splits["train"], "val":
    memory-mapped uint16 tokens; of a task in rows, with their targets in "train_y" and "val_y"."""
    folder = Path(data_dir) / dataset
    if not (folder / "meta.json").exists():
        prepare(dataset, data_dir=data_dir, replace=False)
    lock = folder / ".lock"     # if it is not there, or not ours to write, no process of ours is preparing
    try:
        with own(folder, "--dataset", wait=True) if os.access(lock, os.W_OK) else nullcontext():
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            codec, splits = Codec(meta["codec"]), {}
            for split in ("train", "val", "train_y", "val_y")[:4 if "task" in meta else 2]:
                path, count = folder / f"{split}.bin", meta[f"{split}_tokens"]
                if path.stat().st_size == 2 * count:
                    splits[split] = np.memmap(path, dtype="<u2", mode="r")
                if split not in splits or splits[split].max() >= codec.vocab_size:
                    raise ValueError(f"{split}.bin is not {count:,} tokens below {codec.vocab_size:,}")
        if not isinstance(meta["source"] + meta["sha256"], str) or meta.get("task", "swaps") not in TASKS:
            raise ValueError("meta.json is not as prepare_data.py writes it")
        if "task" in meta:
            splits = {split: tokens.reshape(-1, meta["length"]) for split, tokens in splits.items()}
            if any(splits[name].shape != splits[f"{name}_y"].shape for name in ("train", "val")):
                raise ValueError("there are not as many targets as inputs")
        elif len(splits["val"]) < 2:
            raise ValueError("val.bin has one token, and needs two")
        return {"tokenizer": codec.kind, **meta}, codec, splits
    except OSError:
        raise
    except Exception as e:      # a damaged file can raise anything at all
        fail(f"{folder} is damaged ({type(e).__name__}: {e}); delete it and prepare it again")


# ---- Until train.py, sample.py and lrt.py use parse()

def check(args, **ranges):
    """Ends with an error if a setting is outside its range (least, most) or not one of its allowed values, a list."""
    for name, allowed in ranges.items():
        value = getattr(args, name)
        if isinstance(allowed, list) and value not in allowed:
            fail(f"--{name}={value}: must be one of {', '.join(str(a) for a in allowed if a != '')}")
        if isinstance(allowed, tuple) and not allowed[0] <= value <= allowed[1]:
            fail(f"--{name}={value}: must be {allowed[0]:,} to {allowed[1]:,}")


class Parser(argparse.ArgumentParser):
    """argparse, with every mistake reported by fail(), and the nearest flag's name for one that does not exist."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message):
        near = difflib.get_close_matches(message.split(": ")[-1].split("=")[0], self._option_string_actions, n=1)
        fail(f"{message} (did you mean {near[0]}?)" if "unrecognized" in message and near else f"{message}; -h lists all flags")


@dataclass
class Settings:
    dataset: str = option("shakespeare", "name of the folder in data/; parity and swaps are tasks")
    tokenizer: str = option("char", "char, gpt2 or bpe:N, N merges learned from the text")
    input: str = option("", "UTF-8 text to use (default: tiny Shakespeare, downloaded)")
    length: int = option(32, "of a task's rows", (1, 100_000))
    rows: int = option(20_000, "how many rows of a task", (20, 10_000_000))
    seed: int = option(0, "of a task's rows", (0, MAX_SEED))


@script
def main(argv):
    s, given = parse(Settings, __doc__, argv)
    if "input" in given and "dataset" not in given:     # named after the file
        s.dataset = re.sub(r"\W+", "-", Path(s.input).stem, flags=re.ASCII).strip("-_")[:90] or "text"
        s.dataset += "-text" if s.dataset in TASKS else ""
    for name in given:
        if name in (("tokenizer", "input") if s.dataset in TASKS else ("length", "rows", "seed")):
            kind = "the name of a task" if s.dataset in TASKS else "no task"
            fail(f"--{name} has no meaning for --dataset={s.dataset}, which is {kind}")
    prepare(**{**asdict(s), "input": s.input if "input" in given else None})
    print("train on it with:", command("python", "train.py", f"--dataset={s.dataset}"), file=sys.stderr)


if __name__ == "__main__":
    main()
