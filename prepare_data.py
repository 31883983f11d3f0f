"""Turn text into data/NAME/: train.bin and val.bin (uint16 token numbers) and meta.json.

    python prepare_data.py                                tiny Shakespeare, a token per character
    python prepare_data.py --tokenizer=bpe:1024           in other tokens: data/shakespeare-bpe1024
    python prepare_data.py --dataset=mine --input=FILE    any UTF-8 text; several: repeat --input
    python prepare_data.py --dataset=parity --length=32   a task: inputs and targets; or swaps

The first 90% of the characters of each file are for training, the rest for validation, as in
nanoGPT. A data set keeps its text, as tokens: to prepare it again takes no file and no network.
"""
import base64
import hashlib
import itertools
import json
import os
import re
import sys
import unicodedata
import urllib.request
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tiktoken

from support.files import own, write_together
from support.options import option, parse
from support.pairs import learn_pairs
from support.script import Unusable, command, fail, script, warn
from support.texts import TokenSplit, beginning, given_text, short_text, text_of
from support.tokens import MAX_VOCAB, Codec

SHAKESPEARE_URL = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
                   "tinyshakespeare/input.txt")
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
EMBEDDED = "embedded: pydoc_data.topics"        # a source that gives way to any other
SAMPLE = 2 ** 14                # load() looks at so many tokens in 64 places of a file, or at all


# ---- Texts

def kept_text(folder):
    """The Text that a data set was made of. Raises Unusable if that is damaged, or a task."""
    meta, codec, _ = read_dataset(folder)
    if "task" in meta:
        raise Unusable(f"{folder} is a task, not text; use another --dataset")
    splits = [TokenSplit(folder / f"{split}.bin", codec) for split in ("train", "val")]
    try:
        text = text_of(meta["source"], *splits)
    except (LookupError, ValueError) as e:
        raise damaged(folder, e) from e
    if text.sha256 != meta["sha256"]:
        raise damaged(folder, "the text has another sha256")
    return text


def download():
    """The Text of tiny Shakespeare from its public address, or None."""
    warn(f"downloading {SHAKESPEARE_URL}")
    try:
        data = urllib.request.urlopen(SHAKESPEARE_URL, timeout=10).read(2 ** 21)
        if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
            raise OSError("what came is another file, its sha256 differs")
    except Exception as e:      # whatever a download raises
        warn(f"WARNING: no tiny Shakespeare ({e})")
        return None
    return short_text(SHAKESPEARE_URL, data.decode())


def embedded():
    """The Text of the embedded corpus, which every Python has."""
    from pydoc_data.topics import topics
    text = "\n".join(topics[name] for name in sorted(topics))
    return short_text(f"{EMBEDDED} of Python {sys.version.split()[0]}", text)


def known_text(datasets):
    """The Text of the first of these data sets that is there; else tiny Shakespeare. What is there
    never gives way to the embedded corpus."""
    texts = [kept_text(folder_of(name)) for name in dict.fromkeys(datasets) if is_there(name)]
    for text in texts:
        if not text.source.startswith(EMBEDDED):
            return text
    text = download()
    if text:
        return text
    warn("WARNING: using the EMBEDDED CORPUS, Python's language reference: other losses than the\n"
         "WARNING: README's. If you have the text of Shakespeare in a file:\n"
         "WARNING: python prepare_data.py --dataset=shakespeare --input=FILE")
    return texts[0] if texts else embedded()


# ---- Tokens

def gpt2_entry():
    """GPT-2's 50,256 tokens, through tiktoken, which downloads them once (or looks in
    TIKTOKEN_CACHE_DIR)."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as e:      # whatever its download raises
        raise Unusable(f"cannot load GPT-2's tokens ({type(e).__name__}); "
                       "with no network, use bpe:1024 or char") from e
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return pairs_entry("gpt2", tokens)


def bpe_entry(parts, merges):
    """Byte pairs learned from a text that comes in parts."""
    return pairs_entry("words", learn_pairs(parts, merges))


def pairs_entry(pattern, tokens):
    return {"kind": "bpe", "pattern": pattern,
            "tokens": [base64.b64encode(token).decode() for token in tokens]}


def char_entry(parts):
    """A token for each character of a text that comes in parts."""
    chars = set()
    for part in parts:
        chars.update(part)
    if len(chars) > MAX_VOCAB:
        raise Unusable(f"more than {MAX_VOCAB:,} different characters; use --tokenizer=bpe:1024")
    return {"kind": "char", "chars": sorted(chars) or ["?"]}


def entry_for(text, tokenizer):
    """The "codec" entry of meta.json. Pairs are learned from what is for training. Raises Unusable
    if a split has less than two tokens: one to predict another."""
    if tokenizer == "char":
        entry = char_entry(itertools.chain(text.train, text.val))
    elif tokenizer == "gpt2":
        entry = gpt2_entry()
    else:
        entry = bpe_entry(text.train, merges=int(tokenizer.removeprefix("bpe:")))
    codec = Codec(entry)
    for split in (text.train, text.val):
        if len(codec.encode(beginning(split))) < 2:
            raise Unusable(f"{text.source}: too short, needs 2 tokens for training and 2 for "
                           "validation, which has the last tenth")
    return entry


# ---- Tasks: machines. The target at a position is the state that all inputs so far lead to

def swaps():
    """Five objects on five places: 120 orders (states, as in a dictionary). Input 0 does nothing,
    1 to 10 exchange the objects on one of the 10 pairs of places. Returns the table, (120, 11)."""
    orders = list(itertools.permutations(range(5)))
    number = {order: n for n, order in enumerate(orders)}
    table = np.empty((120, 11), dtype=int)
    table[:, 0] = range(120)
    for state, order in enumerate(orders):
        for n, (i, j) in enumerate(itertools.combinations(range(5), 2), start=1):
            changed = list(order)
            changed[i], changed[j] = order[j], order[i]
            table[state, n] = number[tuple(changed)]
    return table


# TASKS[name][state, input] is the next state; the first is 0. Parity: is the number of ones odd?
TASKS = {"parity": np.array([[0, 1], [1, 0]]), "swaps": swaps()}


def task_rows(task, rows, length, rng):
    """Random inputs and their targets, (rows, length) each."""
    x = rng.integers(TASKS[task].shape[1], size=(rows, length))
    return x, targets(task, x)


def targets(task, x):
    """The state after each input. (rows, length) -> the same."""
    y = np.zeros_like(x)
    state = np.zeros(len(x), dtype=int)
    for t in range(x.shape[1]):
        state = TASKS[task][state, x[:, t]]
        y[:, t] = state
    return y


def different_rows(n_inputs, rows, length, rng):
    """Random inputs, (rows, length), no two rows the same."""
    x = np.empty((0, length), dtype=int)
    while len(x) < rows:
        more = rng.integers(n_inputs, size=(rows, length))
        x = np.unique(np.concatenate([x, more]), axis=0)
    return rng.permutation(x)[:rows]


def task_data(task, length, rows, seed):
    """(splits, meta): different rows of inputs and targets, the last tenth for validation."""
    n_inputs = TASKS[task].shape[1]
    count = max(TASKS[task].shape)
    most = n_inputs ** min(length, 64)
    if 2 * rows > most:
        raise Unusable(f"--rows={rows}: must be at most half of the {most:,} rows of "
                       f"--length={length}")
    x = different_rows(n_inputs, rows, length, np.random.default_rng(seed))
    y = targets(task, x)
    cut = rows - rows // 10
    splits = {"train": x[:cut], "val": x[cut:], "train_y": y[:cut], "val_y": y[cut:]}
    meta = {"task": task, "length": length,
            "source": f"generated: {task}, {rows:,} rows of {length}, {seed=}",
            "sha256": hashlib.sha256(x.astype("<u2").tobytes()).hexdigest(),
            "tokenizer": "numbers", "vocab_size": count,
            "codec": {"kind": "numbers", "count": count, "inputs": n_inputs}}
    return splits, meta


# ---- Names

def folder_of(dataset):
    """data/NAME. Raises Unusable if that is no name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{,99}", dataset):
        raise Unusable(f"--dataset={dataset}: must be up to 100 letters, digits, '_', '-' and '.', "
                       "to name a folder")
    return Path("data", dataset)


def is_there(dataset):
    return (folder_of(dataset) / "meta.json").exists()


def meaning_of(dataset):
    """(the data set whose text this one is to have, the tokens) of a name that says so, such as
    shakespeare-bpe1024; of another, itself and no tokens."""
    found = re.fullmatch(r"(.+)-(char|gpt2|bpe\d*)", dataset)
    if not found:
        return dataset, ""
    base, tokens = found.groups()
    if tokens == "bpe":                 # of how many merges must be said
        return base, ""
    return base, tokens.replace("bpe", "bpe:")


def meta_text(dataset, key):
    """What the meta.json of a data set says, if it can be read; else nothing."""
    try:
        meta = json.loads((folder_of(dataset) / "meta.json").read_text(encoding="utf-8"))
        return str(meta[key])
    except (OSError, LookupError, RecursionError, TypeError, ValueError):
        return ""


def tokens_of(dataset):
    """The tokenizer of a data set that is there; else nothing."""
    tokenizer = meta_text(dataset, "tokenizer")
    return tokenizer if is_tokenizer(tokenizer) else ""


def is_tokenizer(name):
    if name in ("char", "gpt2"):
        return True
    return bool(re.fullmatch(r"bpe:[1-9]\d{,4}", name)) and int(name[4:]) <= MAX_VOCAB - 256


def with_tokens(dataset, tokenizer):
    """The name for a text in these tokens: that of the data set, if it has or would get them."""
    usual = tokens_of(dataset) or "char"
    if tokenizer in ("", usual):
        return dataset
    return f"{dataset}-{tokenizer.replace(':', '')}"


def name_for_files(paths):
    """A name for a data set of these files. What a folder's name cannot say becomes a number, so
    that two files of different names do not share a data set."""
    stems = unicodedata.normalize("NFC", "-".join(Path(path).stem for path in paths))
    name = re.sub(r"\W+", "-", stems, flags=re.ASCII).strip("-_")
    if not name or not stems.isascii() or len(name) > 70:
        number = hashlib.sha256(stems.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        name = f"{name[:70] or 'text'}-{number}"
    if name in TASKS:
        name += "-text"
    return name


def refuse_other_text(dataset, text):
    """A name that was not given, but followed, is no reason to replace another text."""
    theirs = meta_text(dataset, "source")
    if not theirs or theirs.startswith(EMBEDDED) or meta_text(dataset, "sha256") == text.sha256:
        return
    raise Unusable(f"{folder_of(dataset)} is made of another text ({theirs}); "
                   f"--dataset=NAME keeps both, --dataset={dataset} replaces it")


# ---- data/NAME/

def prepare(dataset="", tokenizer="", input=(), length=32, rows=20_000, seed=0, replace=True,
            val_input=""):
    """Write data/NAME/ and return the name: `dataset`, or one that follows from the rest.

    input: a path or several; none: the text that the data set has, or tiny Shakespeare. val_input:
    a path; then all of input is for training. tokenizer: char, gpt2 or bpe:N; none: what the data
    set has, or char. length, rows, seed: of a task. With replace=False a data set that is there
    stays as it is.
    Raises Unusable, which says what is wrong; then nothing has changed."""
    if dataset:
        folder_of(dataset)
    check_tokenizer(tokenizer)
    if isinstance(input, (str, Path)):
        input = [input] if input else []
    if val_input and not input:
        raise Unusable(f"--val_input={val_input} is for a text that --input gives")
    if dataset in TASKS:
        prepare_task(dataset, length, rows, seed, replace)
        return dataset
    if input:
        return prepare_given(dataset, tokenizer, input, val_input)
    return prepare_known(dataset, tokenizer, replace)


def check_tokenizer(tokenizer):
    if tokenizer and not is_tokenizer(tokenizer):
        raise Unusable(f"--tokenizer={tokenizer}: must be char, gpt2 or bpe:N with N from 1 to "
                       f"{MAX_VOCAB - 256}")


def prepare_task(task, length, rows, seed, replace):
    splits, meta = task_data(task, length, rows, seed)
    folder = folder_of(task)
    with own(folder, "--dataset", wait=True):
        if replace or not is_there(task):
            write_dataset(folder, splits, {"dataset": task, **meta})


def prepare_given(dataset, tokenizer, inputs, val_input):
    """Prepare the text of files. Returns the name of the data set."""
    text = given_text(inputs, val_input)
    if not dataset:
        name = name_for_files(inputs)
        if text.sha256 == SHAKESPEARE_SHA256:
            name = "shakespeare"
        dataset = with_tokens(name, tokenizer)
        refuse_other_text(dataset, text)
    tokenizer = tokenizer or tokens_of(dataset) or "char"
    entry = entry_for(text, tokenizer)
    with own(folder_of(dataset), "--dataset", wait=True):
        write_text(dataset, text, entry, tokenizer)
    return dataset


def prepare_known(dataset, tokenizer, replace):
    """Prepare a text that is there already, or tiny Shakespeare. Returns the name."""
    if dataset:
        base, meant = meaning_of(dataset)
        sources = [dataset, base]
        tokenizer = tokenizer or tokens_of(dataset) or meant
        check_tokenizer(tokenizer)
        if base != dataset and not tokenizer:
            raise Unusable(f"no {folder_of(dataset).absolute()}; to make it, add --tokenizer=bpe:N")
    else:
        base = "shakespeare"
        dataset = with_tokens(base, tokenizer)
        sources = [base, dataset]
        tokenizer = tokenizer or tokens_of(dataset)
    if "shakespeare" not in sources and not any(map(is_there, sources)):
        raise Unusable(f"no {folder_of(dataset).absolute()}; to make it: "
                       f"python prepare_data.py --dataset={dataset} --input=FILE")

    others = nullcontext() if base == dataset else reading(folder_of(base))
    with own(folder_of(dataset), "--dataset", wait=True), others:
        if replace or not is_there(dataset):
            text = known_text(sources)
            if sources[0] == base:
                refuse_other_text(dataset, text)
            tokenizer = tokenizer or "char"
            write_text(dataset, text, entry_for(text, tokenizer), tokenizer)
    return dataset


def write_text(dataset, text, entry, tokenizer):
    """Write a data set: a Text in the tokens of a codec entry."""
    codec = Codec(entry)
    splits = {"train": token_arrays(codec, text.train), "val": token_arrays(codec, text.val)}
    meta = {"dataset": dataset, "source": text.source, "sha256": text.sha256,
            "tokenizer": tokenizer, "vocab_size": codec.vocab_size, "codec": entry}
    write_dataset(folder_of(dataset), splits, meta)


def token_arrays(codec, split):
    for tokens in codec.encode_parts(split):
        yield np.array(tokens, dtype="<u2")


def write_dataset(folder, splits, meta):
    """NAME.bin for each split, and meta.json with the number of tokens in each. A split is an array
    or an iterable of arrays, which never have to be in memory together."""
    meta = dict(meta)
    replaced = (folder / "meta.json").exists()

    def write_split(name, f):
        arrays = splits[name]
        if isinstance(arrays, np.ndarray):
            arrays = [arrays]
        size = 0
        for tokens in arrays:
            f.write(np.ascontiguousarray(tokens, dtype="<u2"))
            size += tokens.size
        meta[f"{name}_tokens"] = size

    writers = {folder / f"{name}.bin": partial(write_split, name) for name in splits}
    # The last one: by then write_split has put each split's count into meta
    writers[folder / "meta.json"] = lambda f: f.write(json.dumps(meta).encode())
    write_together(writers)
    warn(f"{folder}{' (replaced)' if replaced else ''}: {meta['source']}: "
         f"{meta['train_tokens']:,} training tokens, {meta['val_tokens']:,} for validation, "
         f"vocabulary of {meta['vocab_size']:,}")


def load(dataset):
    """(meta, codec, splits) of a data set, which is prepared if it is missing and can be.

    splits["train"], ["val"]: Tokens; of a task in rows, with their targets in "train_y", "val_y".
    Raises Unusable if the data are damaged, as far as a look at all of a small file, or at a sample
    of a large one, can tell."""
    folder = folder_of(dataset)
    if not is_there(dataset):
        prepare(dataset, replace=False)
    with reading(folder):
        return read_dataset(folder)


def reading(folder):
    """A with statement that keeps others from writing. Without a lock that is ours to write, no
    process of ours can be preparing."""
    if os.access(folder / ".lock", os.W_OK):
        return own(folder, "--dataset", wait=True)
    return nullcontext()


def damaged(folder, why):
    if isinstance(why, Exception):
        why = f"{type(why).__name__}: {why}"
    return Unusable(f"{folder} is damaged ({why}); delete it and prepare it again")


def read_dataset(folder):
    """What load() returns, of a folder that is there."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        codec = Codec(meta["codec"])
        names, shape = ["train", "val"], -1
        if "task" in meta:
            names, shape = ["train", "val", "train_y", "val_y"], (-1, meta["length"])
        splits = {}
        for name in names:
            count = meta[f"{name.removesuffix('_y')}_tokens"]
            tokens = mapped(folder / f"{name}.bin", count, codec.vocab_size)
            splits[name] = tokens.reshape(shape)
        if "task" in meta:
            check_targets(meta["task"], splits)
        "".join([meta["source"], meta["sha256"], meta["tokenizer"]])    # a TypeError if not texts
        return meta, codec, splits
    except (ArithmeticError, AttributeError, FileNotFoundError, LookupError, RuntimeError,
            TypeError, ValueError) as e:
        raise damaged(folder, e) from e


class Tokens(np.memmap):
    """Tokens of a file, which are read when they are used. What an array of places takes out of
    them is checked then: Unusable, if the vocabulary has no such token."""

    def __array_finalize__(self, source):
        super().__array_finalize__(source)
        self.vocab_size = getattr(source, "vocab_size", MAX_VOCAB)

    def __getitem__(self, places):
        taken = super().__getitem__(places)
        if not np.may_share_memory(taken, self):        # it is more than another view of the file
            check(taken, self.vocab_size)
        return taken


def mapped(path, count, vocab_size):
    """The Tokens of a file, (count,). Raises ValueError if it has more or fewer, or other ones."""
    size = path.stat().st_size
    if count < 2 or size != 2 * count:
        raise ValueError(f"{path.name} has {size:,} bytes, not two for each of {count:,} tokens, "
                         "of which it needs two")
    tokens = Tokens(path, "<u2", "r")
    tokens.vocab_size = vocab_size
    for start in sample_starts(count):
        check(tokens[start:start + SAMPLE], vocab_size, path.name)
    return tokens


def sample_starts(count):
    """Where to look at SAMPLE tokens: at all of a few, or at 64 places, the last one among them."""
    if count <= 64 * SAMPLE:
        return range(0, count, SAMPLE)
    return np.linspace(0, count - SAMPLE, 64).astype(int)


def check(tokens, vocab_size, where="the data"):
    """Raises Unusable if there is a token that the vocabulary does not have."""
    most = tokens.max(initial=0)
    if most >= vocab_size:
        raise Unusable(f"{where}: token {most:,} of a vocabulary of {vocab_size:,}; damaged data "
                       "must be prepared again")


def check_targets(task, splits):
    """Raises ValueError if the targets of a task are not what its table says now."""
    rows = slice(0, 1000)
    if not np.array_equal(targets(task, splits["val"][rows]), splits["val_y"][rows]):
        raise ValueError(f"the table of {task} has changed")


# ---- The command line

@dataclass
class Settings:
    dataset: str = option("", "name of the folder in data/; parity and swaps are tasks; none: a "
                              "name that follows from the text and the tokens", bool)
    tokenizer: str = option("", "char, gpt2 or bpe:N, N merges learned from the text; none: as the "
                                "data set has it, or char", bool)
    input: tuple = option((), "UTF-8 text, the first 90% for training; none: the text that the "
                              "data set has, or tiny Shakespeare, downloaded", bool, repeat=True)
    val_input: str = option("", "UTF-8 text for validation; then all of --input is for training",
                            bool)
    length: int = option(32, "of a task's rows", (1, 100_000))
    rows: int = option(20_000, "how many rows of a task", (20, 10_000_000))


@script
def main(argv):
    s, given = parse(Settings, __doc__, argv)
    if s.dataset in TASKS:
        meaningless, what = ("tokenizer", "input", "val_input"), "the name of a task"
    else:
        meaningless, what = ("length", "rows"), "not the name of a task"
    for name in given:
        if name in meaningless:
            fail(f"--{name} has no meaning for --dataset={s.dataset}, {what}")
    dataset = prepare(**asdict(s))
    warn("train on it with: " + command("python", "train.py", f"--dataset={dataset}"))


if __name__ == "__main__":
    main()
