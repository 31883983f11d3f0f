"""Turn text into data/NAME/: train.bin and val.bin (uint16 token numbers) and meta.json (codec and provenance).

    python prepare_data.py                                  tiny Shakespeare, one token per character
    python prepare_data.py --tokenizer=bpe:1024             the same, 1,024 merges learned from its training split
    python prepare_data.py --dataset=mine --input=FILE      any UTF-8 text, into data/mine/
    python prepare_data.py --dataset=parity --length=32     a task, not text: rows of inputs and targets; or swaps

The first 90% of the characters are for training, the rest for validation, as in nanoGPT. Tasks also write
train_y.bin and val_y.bin, as their targets are not the next token.
"""
import argparse
import base64
import codecs
import difflib
import errno
import functools
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from http.client import HTTPException
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
DOWNLOAD_SECONDS = 60           # for the whole file; nothing arriving for 10 seconds ends it too
MAX_VOCAB = 2 ** 16             # what uint16 can number
MAX_SEED = 2 ** 32 - 1


# How text is cut before byte pairs are merged. "learned": words, numbers and signs, each with the space before it, then
# white space; it means the same to Python's re and to tiktoken, and leaves out no character. meta.json names one of
# these two, so that no file brings a pattern of its own, which could take for ever.
PATTERNS = {"learned": r" ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+",
            "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"}


# ---- Shared by all scripts: how to fail, settings, files --------------------------------------------------

def fail(message):
    """One line on stderr, exit status 2."""
    print("error:", " ".join(str(message).splitlines()), file=sys.stderr)
    sys.exit(2)


def script(main):
    """Decorator of every script's main(argv): what can end any of them, at any place, ends it in order."""
    @functools.wraps(main)
    def guarded(argv=None):
        try:
            for stream in (sys.stdout, sys.stderr):     # a terminal that cannot show a character shows a "?"
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="replace")
            return main(argv)
        except KeyboardInterrupt:                       # Ctrl-C
            sys.exit(130)
        except BrokenPipeError:                         # a reader like head that has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except OSError as e:                            # a folder one may not enter, a name too long, ...
            fail(f"{e.filename}: {e.strerror}" if e.filename else e)
        except (MemoryError, RuntimeError, ValueError) as e:
            if re.search("embedded null|home directory", str(e)):
                fail(f"this is no path of a file or folder here: {e}")
            memory = re.search("out of memory|not enough memory|allocate memory", str(e))
            if not memory and not isinstance(e, MemoryError):       # torch's kind of it is a RuntimeError
                raise
            fail(f"not enough memory; smaller sizes need less ({(str(e).splitlines() or ['MemoryError'])[0]:.150})")
    return guarded


def option(default, help, allowed=None):
    """A field of a dataclass of settings. allowed: (least, most), a list of values, or None for any."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


def parse(settings_class, doc, argv, **presets):
    """(settings, given): the command line as an instance of a dataclass whose fields are options, each a flag
    --name=value; and the names of those that it gives. presets replace defaults."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    how = "; settings are written --name=value, and -h lists them"
    parser.error = lambda message: fail(message.removeprefix("argument ") + how)
    options = {f.name: f for f in fields(settings_class)}
    for name, f in options.items():
        default, most = presets.get(name, f.default), (f.metadata["allowed"] or [""])[-1]
        notes = [must_be(f)] if f.metadata["allowed"] and (isinstance(most, str) or most < 10 ** 5) else []
        if default != "" and "(default" not in f.metadata["help"]:
            notes.append(f"default: {default}")
        text = f.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")
        parser.add_argument(f"--{name}", metavar="X", help=text.replace("%", "%%"), default=argparse.SUPPRESS)
    typed, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        fail(f"{'no setting' if name.startswith('-') else 'unexpected'} {name}{hint(name, options) or how}")
    values = {name: value_of(options[name], text) for name, text in vars(typed).items()}
    return settings_class(**{**presets, **values}), tuple(values)


def must_be(f):
    """What an option's value must be, in words."""
    allowed, number = f.metadata["allowed"], lambda x: f"{x:,}" if abs(x) < 1e12 else f"{x:g}"
    if isinstance(allowed, list):
        return " or ".join(str(a) for a in allowed if a != "")
    kind = {int: "a whole number", float: "a number"}.get(f.type, "text")
    return f"{kind} from {number(allowed[0])} to {number(allowed[1])}" if allowed else kind


def value_of(f, text):
    """The value of an option from what was typed for it. Ends with an error if it is not what it must be."""
    allowed = f.metadata["allowed"]
    if isinstance(allowed, list) and 1 in allowed:
        text = {"true": "1", "yes": "1", "false": "0", "no": "0"}.get(text.lower(), text)
    try:
        value = f.type(text)
        if isinstance(allowed, list):
            good = value in allowed
        elif allowed:
            good = allowed[0] <= value <= allowed[1]
        else:
            good = f.type is str or math.isfinite(value)
    except ValueError:
        good = False
    if not good:
        fail(f"--{f.name}={text}: must be {must_be(f)}")
    return value


# What a setting of these scripts is called elsewhere, in nanoGPT or every day.
ELSEWHERE = {
    "learning_rate": "lr", "max_iters": "steps iters iterations epochs max_steps n_steps num_steps train_steps",
    "n_layer": "layers depth num_layers", "n_head": "heads num_heads",
    "n_embd": "dim width embd d_model hidden hidden_size n_embed", "batch_size": "batch bs",
    "block_size": "context ctx seq_len context_length seq_length sequence_length", "weight_decay": "wd",
    "warmup_iters": "warmup warmup_steps", "grad_clip": "clip", "gradient_accumulation_steps": "grad_accum",
    "lrt_subsets": "subsets", "lrt_sweeps": "sweeps", "out_dir": "out output output_dir checkpoint ckpt model",
    "dataset": "data name", "temperature": "temp", "num_samples": "n samples", "device": "gpu cuda cpu",
    "max_new_tokens": "tokens max_tokens num_tokens length", "prompt": "start", "input": "file text",
    "tokenizer": "tokens", "latent": "memory",
}


def hint(name, known):
    """The setting that is meant by a name which is none, as the end of a message; or nothing."""
    name = name.lstrip("-").replace("-", "_").lower()
    near = [here for here, words in ELSEWHERE.items() if here in known and name in words.split()]
    near += difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return f" (did you mean --{near[0]}?)" if near else ""


def command(*words):
    """A command line that a shell takes as these words."""
    if os.name == "nt":
        return " ".join(w if re.fullmatch(r"[\w@+=:,./\\-]+", w) else f'"{w}"' for w in map(str, words))
    return shlex.join(map(str, words))


HELD = []       # open files: closed, they would lose their locks


def own(folder, what, wait=False):
    """Keep other processes out of a folder, which is made if need be: returns an open file whose lock lasts until
    it is closed or the process ends in whatever way. If another process has it: waits, or ends with an error that
    advises another `what`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = open(Path(folder) / ".lock", "ab")
    HELD.append(lock)
    for tries in itertools.count():
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                lock.seek(0)
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
            return lock
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES):     # a file system that has no locks
                return lock
        if not wait:
            lock.close()
            fail(f"{folder} is in use by another run; wait for it or use another {what}")
        if tries == 10:
            print(f"waiting for another run that uses {folder}", file=sys.stderr)
        time.sleep(0.1)


def write_atomic(path, write, *more):
    """Create or replace a file in one step: write(f) fills a temporary neighbour, which then takes its name. More pairs of
    path and write: none takes its name before all are written."""
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
        fail(f"cannot write {path}: {getattr(e, 'strerror', None) or str(e).splitlines()[0]}")


def read_text(path):
    """The text of a UTF-8 file, line ends as they are."""
    try:
        return Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as e:
        fail(f"cannot read {path or 'a file with no name'}: {e.strerror}")
    except UnicodeDecodeError as e:
        fail(f"{path} is not UTF-8 text (byte {e.object[e.start]:#04x} at {e.start:,}); convert it, for example with "
             f"iconv -t UTF-8")


# ---- Tokens ------------------------------------------------------------------------------------------------------

class Codec:
    """Text to token numbers and back, from the "codec" entry of meta.json: plain values, so a checkpoint holds it.

    {"kind": "char", "chars": [...]}, {"kind": "bpe", "pattern": ..., "tokens": [base64 of each token's bytes]}, or, for
    the numbers of a task with spaces between them, {"kind": "numbers", "count": ..., "inputs": how many of them are inputs}.
    token_bytes: the bytes of each token. Raises ValueError, KeyError or TypeError if the entry is not like that."""

    def __init__(self, entry):
        self.kind = entry["kind"]
        if self.kind == "char":
            self.index = {c: i for i, c in enumerate(entry["chars"])}
            if not self.index or any(len(c) != 1 for c in entry["chars"]) or len(self.index) != len(entry["chars"]):
                raise ValueError("the characters are not single ones, all different")
            self.token_bytes = [c.encode() for c in entry["chars"]]
        elif self.kind == "bpe":
            self.token_bytes = [base64.b64decode(t) for t in entry["tokens"]]
            ranks = {t: i for i, t in enumerate(self.token_bytes)}
            if len(ranks) != len(self.token_bytes) or not all(bytes([b]) in ranks for b in range(256)):
                raise ValueError("the tokens are not all different, or a single byte is not among them")
            self.encoding = tiktoken.Encoding("bpe", pat_str=PATTERNS[entry["pattern"]], mergeable_ranks=ranks, special_tokens={})
        elif self.kind == "numbers":
            self.inputs = entry["inputs"]
            if not 1 <= self.inputs <= entry["count"] <= MAX_VOCAB:
                raise ValueError(f"{entry['count']} numbers, {self.inputs} of them inputs")
            self.token_bytes = [f"{i} ".encode() for i in range(entry["count"])]
        else:
            raise ValueError(f"unknown codec {self.kind!r}")
        self.vocab_size = len(self.token_bytes)

    def encode(self, text):
        """Token numbers of a text. Raises ValueError that names the characters it has no token for."""
        if self.kind == "bpe":
            return self.encoding.encode_ordinary(text)
        if self.kind == "numbers":
            if wrong := [n for n in text.split() if not (n.isdecimal() and int(n) < self.inputs)]:
                raise ValueError(f"{wrong[0]!r} is not a number from 0 to {self.inputs - 1}")
            return [int(n) for n in text.split()]
        unknown = sorted(set(text) - set(self.index))
        if unknown:
            raise ValueError(f"no token for {' '.join(map(repr, unknown[:10]))}; "
                             f"known: {''.join(self.index)!r:.200}")
        return [self.index[c] for c in text]

    def decoder(self):
        """A function from token number to text, for streaming: it holds back the bytes of unfinished characters."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: utf8.decode(self.token_bytes[token])

    def decode(self, tokens):
        return b"".join(self.token_bytes[t] for t in tokens).decode("utf-8", errors="replace")


def char_codec(text):
    return {"kind": "char", "chars": sorted(set(text))}


def gpt2_codec():
    """GPT-2's 50,256 tokens, through tiktoken, which downloads them once (or looks in TIKTOKEN_CACHE_DIR)."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as e:      # whatever its download raises
        fail(f"cannot load GPT-2's tokens ({type(e).__name__}); with no network, use --tokenizer=bpe:1024 or char")
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return {"kind": "bpe", "pattern": "gpt2", "tokens": [base64.b64encode(t).decode() for t in tokens]}


def bpe_codec(text, merges):
    """Byte-pair encoding (arXiv:1508.07909) learned from a text: the 256 bytes and up to `merges` more tokens.

    Each merge joins the most frequent pair of neighbours, and only words that hold the pair are looked at again."""
    words = Counter(re.findall(PATTERNS["learned"], text))
    counts = list(words.values())
    words = [[bytes([b]) for b in word.encode()] for word in words]
    pairs, where = Counter(), defaultdict(set)      # how often each pair occurs, and in which words
    for w, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += counts[w]
            where[pair].add(w)
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < 256 + merges and pairs:
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        tokens.append(best[0] + best[1])
        for w in where.pop(best):
            old, new, i = words[w], [], 0
            while i < len(old):
                n = 2 if tuple(old[i:i + 2]) == best else 1
                new.append(b"".join(old[i:i + n]))
                i += n
            for pair in zip(old, old[1:]):
                pairs[pair] -= counts[w]
            for pair in zip(new, new[1:]):
                pairs[pair] += counts[w]
                where[pair].add(w)
            words[w] = new
        pairs = +pairs                              # drops those that are gone
    return {"kind": "bpe", "pattern": "learned", "tokens": [base64.b64encode(t).decode() for t in tokens]}


# ---- Tasks of state tracking: what is asked at a position depends on all inputs so far, in their order ----------------

def parity(x):
    """Bits; the target is 1 where the number of ones so far is odd. x (rows, length) -> targets (rows, length)."""
    return x.cumsum(1) % 2


def swaps(x):
    """Five objects on five places. 0 does nothing, 1 to 10 exchange the objects on two places, each for one of the 10
    pairs of places; the target is the number of the arrangement, 0 to 119 in dictionary order. (rows, length) -> same."""
    arrangements = list(itertools.permutations(range(5)))
    pairs = [(0, 0), *itertools.combinations(range(5), 2)]
    follower = np.empty((len(arrangements), len(pairs)), dtype=int)
    for (a, arrangement), (p, (i, j)) in itertools.product(enumerate(arrangements), enumerate(pairs)):
        after = list(arrangement)
        after[i], after[j] = after[j], after[i]
        follower[a, p] = arrangements.index(tuple(after))
    y, state = np.empty_like(x), np.zeros(len(x), dtype=int)
    for t in range(x.shape[1]):
        y[:, t] = state = follower[state, x[:, t]]
    return y


TASKS = {"parity": (parity, 2, 2), "swaps": (swaps, 11, 120)}      # targets from inputs, different inputs, different targets


def task_rows(task, rows, length, rng):
    """Random inputs and their targets, (rows, length) each."""
    target, n_inputs, _ = TASKS[task]
    x = rng.integers(n_inputs, size=(rows, length))
    return x, target(x)


# ---- Sources -----------------------------------------------------------------------------------------------------

def download(url, size, sha256):
    """The bytes at an address. Raises OSError if they do not come in time or are not the expected ones."""
    deadline, data = time.monotonic() + DOWNLOAD_SECONDS, b""
    with urllib.request.urlopen(url, timeout=10) as response:
        while chunk := response.read(1 << 16):
            data += chunk
            if len(data) > size or time.monotonic() > deadline:
                break
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OSError(f"what came from {url} is not the expected file (sha256 differs)")
    return data


def shakespeare(folder):
    """(text, source): tiny Shakespeare from this folder or its public address; else the embedded corpus."""
    path = folder / "input.txt"
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == SHAKESPEARE_SHA256:
        return read_text(path), SHAKESPEARE_URL
    try:
        print(f"downloading {SHAKESPEARE_URL}", file=sys.stderr)
        data = download(SHAKESPEARE_URL, SHAKESPEARE_BYTES, SHAKESPEARE_SHA256)
    except OSError as e:
        from pydoc_data.topics import topics
        print(f"WARNING: no tiny Shakespeare ({e}).\n"
              "WARNING: using the EMBEDDED CORPUS instead, Python's own language reference: losses will be other ones\n"
              "WARNING: than the README's. With the text in a file: python prepare_data.py --input=FILE", file=sys.stderr)
        return "\n".join(topics[name] for name in sorted(topics)), f"embedded: pydoc_data.topics of Python {sys.version.split()[0]}"
    write_atomic(path, lambda f: f.write(data))
    return data.decode(), SHAKESPEARE_URL


# ---- data/NAME/ --------------------------------------------------------------------------------------------------

def prepare(dataset="shakespeare", tokenizer="char", input=None, length=32, rows=20_000, seed=0, data_dir="data"):
    """Write data_dir/dataset/ and return its path."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", dataset):
        fail(f"--dataset={dataset}: a name of letters, digits, '_', '-' and '.', as it becomes a folder in {data_dir}/")
    if dataset in TASKS and input is not None:
        fail(f"--dataset={dataset} is the name of a task; give the text of --input={input} another one")
    if dataset in TASKS:
        return prepare_task(dataset, length, rows, seed, data_dir)
    merges = re.fullmatch(r"bpe:(\d{1,5})", tokenizer)
    if tokenizer not in ("char", "gpt2") and not (merges and 1 <= int(merges[1]) <= MAX_VOCAB - 256):
        fail(f"--tokenizer={tokenizer}: must be char, gpt2 or bpe:N with N from 1 to {MAX_VOCAB - 256}")
    if input is None and dataset != "shakespeare":
        fail(f"--dataset={dataset} is not in {Path(data_dir).absolute()}; make it with: "
             f"python prepare_data.py --dataset={dataset} --input=FILE")
    if input is not None:
        text, source = read_text(input), f"file: {Path(input).name}"
    folder = make_folder(Path(data_dir) / dataset)
    if input is None:
        text, source = shakespeare(folder)
    cut = int(len(text) * 0.9)
    splits = {"train": text[:cut], "val": text[cut:]}
    if not splits["train"] or len(splits["val"]) < 2:
        fail(f"{input}: {len(text)} characters are too few to train on")
    if tokenizer == "char":
        entry = char_codec(text)
    else:
        entry = gpt2_codec() if tokenizer == "gpt2" else bpe_codec(splits["train"], int(merges[1]))
    codec = Codec(entry)
    if codec.vocab_size > MAX_VOCAB:
        fail(f"{input}: {codec.vocab_size:,} different characters, more than {MAX_VOCAB:,}; use --tokenizer=bpe:1024")
    meta = {"dataset": dataset, "source": source, "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "characters": len(text), "tokenizer": tokenizer, "vocab_size": codec.vocab_size}
    write_dataset(folder, {split: codec.encode(part) for split, part in splits.items()}, {**meta, "codec": entry})
    return folder


def prepare_task(task, length, rows, seed, data_dir):
    """Write data_dir/task/: `rows` different rows of `length` inputs and targets, the last tenth for validation."""
    _, n_inputs, n_targets = TASKS[task]
    if length < 64 and 2 * rows > n_inputs ** length:
        fail(f"--rows={rows}: there are just {n_inputs ** length:,} different rows of --length={length}; take half of that or less")
    rng, unique = np.random.default_rng(seed), np.empty((0, length), dtype=int)
    while len(unique) < rows:
        unique = np.unique(np.concatenate([unique, task_rows(task, rows, length, rng)[0]]), axis=0)
    x = rng.permutation(unique)[:rows]
    y, cut = TASKS[task][0](x), rows - rows // 10
    splits = {"train": x[:cut], "val": x[cut:], "train_y": y[:cut], "val_y": y[cut:]}
    meta = {"dataset": task, "task": task, "source": f"generated: {task}, {rows:,} rows of {length}, seed {seed}", "length": length,
            "sha256": hashlib.sha256(x.astype("<u2").tobytes()).hexdigest(), "vocab_size": max(n_inputs, n_targets)}
    folder = make_folder(Path(data_dir) / task)
    write_dataset(folder, splits, {**meta, "codec": {"kind": "numbers", "count": max(n_inputs, n_targets), "inputs": n_inputs}})
    return folder


def make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        fail(f"cannot make folder {path}: {e.strerror}")
    return path


def write_dataset(folder, splits, meta):
    """NAME.bin for each split, and meta.json with the number of tokens in each."""
    files = []
    for split, tokens in splits.items():
        tokens = np.asarray(tokens, dtype="<u2")
        files += [folder / f"{split}.bin", lambda f, tokens=tokens: f.write(tokens.tobytes())]
        meta[f"{split}_tokens"] = tokens.size
    write_atomic(*files, folder / "meta.json", lambda f: f.write(json.dumps(meta).encode()))
    for split in splits:
        print(f"{folder / split}.bin: {meta[f'{split}_tokens']:,} tokens", file=sys.stderr)


def load(dataset, data_dir="data"):
    """(meta, codec, splits) of a prepared folder: splits["train"] and splits["val"] are memory-mapped uint16 tokens; for
    a task in rows, with their targets in splits["train_y"] and splits["val_y"]."""
    folder = Path(data_dir) / dataset
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        codec, splits = Codec(meta["codec"]), {}
        if not isinstance(meta["source"] + meta["sha256"], str) or meta.get("task", "swaps") not in TASKS:
            raise ValueError("meta.json is not as prepare_data.py writes it")
        for split in ("train", "val", "train_y", "val_y") if "task" in meta else ("train", "val"):
            path = folder / f"{split}.bin"
            if path.stat().st_size != 2 * meta[f"{split}_tokens"]:
                raise ValueError(f"{split}.bin has {path.stat().st_size:,} bytes, not 2 for each of its {meta[f'{split}_tokens']:,} tokens")
            splits[split] = np.memmap(path, dtype="<u2", mode="r")
            if splits[split].max() >= codec.vocab_size:
                raise ValueError(f"{split}.bin has a token {splits[split].max()}, but the vocabulary ends before {codec.vocab_size}")
            if "task" in meta:
                splits[split] = splits[split].reshape(-1, meta["length"])
        if "task" in meta and any(splits[name].shape != splits[f"{name}_y"].shape for name in ("train", "val")):
            raise ValueError("there are not as many targets as inputs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        fail(f"{folder} is damaged ({type(e).__name__}: {e}); delete it and prepare it again")
    return meta, codec, splits


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


@script
def main(argv):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", default="shakespeare", help="name of the folder in data/ (default: shakespeare)")
    parser.add_argument("--tokenizer", default="char", help="char, gpt2 or bpe:N, N merges learned from the text (default: char)")
    parser.add_argument("--input", metavar="FILE", help="UTF-8 text to use; without it, tiny Shakespeare is downloaded")
    parser.add_argument("--length", type=int, default=32, help="of a task's rows (default: 32)")
    parser.add_argument("--rows", type=int, default=20_000, help="how many rows of a task (default: 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="of a task's rows (default: 0)")
    args = parser.parse_args(argv)
    check(args, length=(1, 100_000), rows=(20, 10_000_000), seed=(0, MAX_SEED))
    prepare(**vars(args))


if __name__ == "__main__":
    main()
