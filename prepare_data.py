"""Turn text into data/NAME/: train.bin and val.bin (uint16 token numbers) and meta.json (codec, provenance).

    python prepare_data.py                                  tiny Shakespeare, a token per character
    python prepare_data.py --tokenizer=bpe:1024             the same, 1,024 merges learned from it
    python prepare_data.py --dataset=mine --input=FILE      any UTF-8 text, into data/mine/
    python prepare_data.py --dataset=parity --length=32     a task, not text: inputs and targets; or swaps

The first 90% of the characters are for training, the rest for validation, as in nanoGPT."""
import base64, hashlib, itertools, json, os, re, sys
import urllib.request
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tiktoken

from support.files import own, read_text, write_atomic
from support.options import option, parse
from support.script import command, fail, script
from support.tokens import MAX_VOCAB, WORDS, Codec

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

def gpt2_codec():
    """GPT-2's 50,256 tokens, through tiktoken, which downloads them once (or looks in TIKTOKEN_CACHE_DIR)."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as e:      # whatever its download raises
        fail(f"cannot load GPT-2's tokens ({type(e).__name__}); with no network, use bpe:1024 or char")
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return {"kind": "bpe", "pattern": "gpt2", "tokens": [base64.b64encode(t).decode() for t in tokens]}

def bpe_codec(text, merges):
    """Byte pairs (arXiv:1508.07909) learned from a text: each joins the most frequent pair of neighbours."""
    words = [["".join(map(chr, word.encode())), n] for word, n in Counter(re.findall(WORDS, text)).items()]
    tokens = [bytes([b]) for b in range(256)]       # in words, the character chr(i) stands for the token i
    pairs, where = Counter(), defaultdict(set)      # how often each pair occurs, and in which words
    def count(w, sign):
        for pair in zip(words[w][0], words[w][0][1:]):
            pairs[pair] += sign * words[w][1]
            where[pair].add(w)
    for w in range(len(words)):
        count(w, 1)
    while len(tokens) < 256 + merges and (most := max(pairs.values(), default=0)):
        likeliest = [pair for pair, n in pairs.items() if n == most]
        a, b = max(likeliest, key=lambda pair: [tokens[ord(c)] for c in pair])
        for w in where.pop((a, b)):
            count(w, -1)
            words[w][0] = words[w][0].replace(a + b, chr(len(tokens)))
            count(w, 1)
        tokens.append(tokens[ord(a)] + tokens[ord(b)])
    return {"kind": "bpe", "pattern": "words", "tokens": [base64.b64encode(t).decode() for t in tokens]}

# ---- Tasks: machines. The target at a position is the state that all inputs so far, in their order, lead to
def swaps():
    """Five objects on five places: 120 orders (states, as in a dictionary). Input 0 does nothing, 1 to 10
    exchange the objects on one of the 10 pairs of places. Returns the table, (120, 11)."""
    orders, pairs = list(itertools.permutations(range(5))), [(0, 0), *itertools.combinations(range(5), 2)]
    exchanged = lambda order, i, j: tuple(order[{i: j, j: i}.get(k, k)] for k in range(5))
    return np.array([[orders.index(exchanged(order, *pair)) for pair in pairs] for order in orders])

# TASKS[name][state, input] is the next state; the first one is 0. Parity: is the number of ones odd?
TASKS = {"parity": np.array([[0, 1], [1, 0]]), "swaps": swaps()}

def task_rows(task, rows, length, rng):
    """Random inputs and their targets, (rows, length) each."""
    x = rng.integers(TASKS[task].shape[1], size=(rows, length))
    return x, targets(task, x)

def targets(task, x):
    """The state after each input. (rows, length) -> the same."""
    y = np.zeros_like(x)
    for t in range(x.shape[1]):
        y[:, t] = TASKS[task][y[:, t - 1], x[:, t]]     # in y[:, -1] there are zeros yet
    return y

def task_data(task, length, rows, seed):
    """(splits, meta): `rows` different rows of `length` inputs and targets, the last tenth for validation."""
    count, n_inputs = max(TASKS[task].shape), TASKS[task].shape[1]
    if 2 * rows > (most := n_inputs ** min(length, 64)):
        fail(f"--rows={rows}: must be at most half of the {most:,} rows of --length={length}")
    rng, x = np.random.default_rng(seed), np.empty((0, length), dtype=int)
    while len(x) < rows:
        x = np.unique(np.concatenate([x, rng.integers(n_inputs, size=(rows, length))]), axis=0)
    x, cut = rng.permutation(x)[:rows], rows - rows // 10
    y = targets(task, x)
    return {"train": x[:cut], "val": x[cut:], "train_y": y[:cut], "val_y": y[cut:]}, {
        "task": task, "length": length, "source": f"generated: {task}, {rows:,} rows of {length}, {seed=}",
        "sha256": hashlib.sha256(x.astype("<u2").tobytes()).hexdigest(), "tokenizer": "numbers",
        "vocab_size": count, "codec": {"kind": "numbers", "count": count, "inputs": n_inputs}}

# ---- data/NAME/
def shakespeare(folder):
    """(text, source): tiny Shakespeare from this folder or its public address; else the embedded corpus."""
    path = folder / "input.txt"
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != SHAKESPEARE_SHA256:
        print(f"downloading {SHAKESPEARE_URL}", file=sys.stderr)
        try:
            data = urllib.request.urlopen(SHAKESPEARE_URL, timeout=10).read(2 ** 21)
            if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
                raise OSError("what came is another file, its sha256 differs")
        except Exception as e:      # whatever a download raises
            print(f"WARNING: no tiny Shakespeare ({e}); using the EMBEDDED CORPUS, Python's language\n"
                  "WARNING: reference: other losses than the README's. If you have the text in a file:\n"
                  "WARNING: python prepare_data.py --dataset=shakespeare --input=FILE", file=sys.stderr)
            from pydoc_data.topics import topics
            source = f"embedded: pydoc_data.topics of Python {sys.version.split()[0]}"
            return "\n".join(topics[name] for name in sorted(topics)), source
        write_atomic(path, lambda f: f.write(data))
    return read_text(path), SHAKESPEARE_URL

def text_data(text, source, tokenizer):
    """(splits, meta) of a text: the first 90% of its characters for training, the rest for validation."""
    cut = int(len(text) * 0.9)
    entry = {"kind": "char", "chars": sorted(set(text)) or ["?"]} if tokenizer == "char" else \
        gpt2_codec() if tokenizer == "gpt2" else bpe_codec(text[:cut], merges=int(tokenizer[4:]))
    codec = Codec(entry)
    splits = {"train": codec.encode(text[:cut]), "val": codec.encode(text[cut:])}
    if len(splits["val"]) < 2 or codec.vocab_size > MAX_VOCAB:
        fail(f"{source}: needs 2 tokens in its last tenth, and at most {MAX_VOCAB:,} different characters")
    return splits, {"source": source, "sha256": hashlib.sha256(text.encode()).hexdigest(),
                    "tokenizer": tokenizer, "vocab_size": codec.vocab_size, "codec": entry}

def prepare(dataset="shakespeare", tokenizer="char", input="", length=32, rows=20_000, seed=0, replace=True):
    """Write data/dataset/. With replace=False it stays as it is if it is there."""
    folder = Path("data") / dataset
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{,99}", dataset):
        fail(f"--dataset={dataset}: must be up to 100 letters, digits, '_', '-' and '.', to name a folder")
    if not re.fullmatch(r"char|gpt2|bpe:[1-9]\d{,4}", tokenizer) or int(tokenizer[4:] or 0) > MAX_VOCAB - 256:
        fail(f"--tokenizer={tokenizer}: must be char, gpt2 or bpe:N with N from 1 to {MAX_VOCAB - 256}")
    if dataset in TASKS:
        splits, meta = task_data(dataset, length, rows, seed)
    elif input:
        splits, meta = text_data(read_text(input), f"file: {Path(input).name}", tokenizer)
    elif dataset != "shakespeare":
        fail(f"no {folder.absolute()}; to make it: python prepare_data.py --dataset={dataset} --input=FILE")
    with own(folder, "--dataset", wait=True):
        if replace or not (folder / "meta.json").exists():
            if dataset == "shakespeare" and not input:
                splits, meta = text_data(*shakespeare(folder), tokenizer)
            write_dataset(folder, splits, {"dataset": dataset, **meta})

def write_dataset(folder, splits, meta):
    """NAME.bin for each split, and meta.json with the number of tokens in each."""
    files, replaced = [], (folder / "meta.json").exists()
    for split, tokens in splits.items():
        tokens = np.asarray(tokens, dtype="<u2")
        files += [folder / f"{split}.bin", lambda f, tokens=tokens: f.write(tokens)]
        meta[f"{split}_tokens"] = tokens.size
    write_atomic(*files, folder / "meta.json", lambda f: f.write(json.dumps(meta).encode()))
    print(f"{folder}{' (replaced)' * replaced}: {meta['source']}: {meta['train_tokens']:,} training tokens, "
          f"{meta['val_tokens']:,} for validation, vocabulary of {meta['vocab_size']:,}", file=sys.stderr)

def load(dataset):
    """(meta, codec, splits) of data/dataset, which is prepared if it is missing. splits["train"], "val":
    memory-mapped uint16 tokens; of a task in rows, with their targets in "train_y" and "val_y"."""
    folder = Path("data") / dataset
    if not (folder / "meta.json").exists():
        prepare(dataset, replace=False)
    try:                        # without a lock that is ours to write, no process of ours can be preparing
        with own(folder, "--dataset", wait=True) if os.access(folder / ".lock", os.W_OK) else nullcontext():
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            codec, splits = Codec(meta["codec"]), {}
            shape = (-1, meta["length"]) if "task" in meta else -1
            for split in ("train", "val", "train_y", "val_y")[:4 if "task" in meta else 2]:
                path, count = folder / f"{split}.bin", meta[f"{split.removesuffix('_y')}_tokens"]
                if path.stat().st_size == 2 * count > 2:
                    splits[split] = np.memmap(path, "<u2", "r").reshape(shape)
                if split not in splits or splits[split].max() >= codec.vocab_size:
                    raise ValueError(f"{split}.bin: not {count:,} tokens (it needs two) or not of this codec")
        if "task" in meta and (targets(meta["task"], splits["val"]) != splits["val_y"]).any():
            raise ValueError(f"the table of {meta['task']} has changed")
        "".join([meta["source"], meta["sha256"]])           # a TypeError if they are no texts
        return meta, codec, splits
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        fail(f"{folder} is damaged ({type(e).__name__}: {e}); delete it and prepare it again")

@dataclass
class Settings:
    dataset: str = option("shakespeare", "name of the folder in data/; parity and swaps are tasks")
    tokenizer: str = option("char", "char, gpt2 or bpe:N, N merges learned from the text")
    input: str = option("", "UTF-8 text to use; none: tiny Shakespeare, downloaded", bool)
    length: int = option(32, "of a task's rows", (1, 100_000))
    rows: int = option(20_000, "how many rows of a task", (20, 10_000_000))

@script
def main(argv):
    s, given = parse(Settings, __doc__, argv)
    if s.input and "dataset" not in given:              # named after the file, but for tiny Shakespeare
        s.dataset = re.sub(r"\W+", "-", Path(s.input).stem, flags=re.ASCII).strip("-_")[:90] or "text"
        s.dataset += "-text" if s.dataset in TASKS else ""
        if hashlib.sha256(read_text(s.input).encode()).hexdigest() == SHAKESPEARE_SHA256:
            s.dataset = "shakespeare"
    task = s.dataset in TASKS
    for name in set(given).intersection(("tokenizer", "input") if task else ("length", "rows")):
        fail(f"--{name} has no meaning for --dataset={s.dataset}, {'' if task else 'not '}the name of a task")
    prepare(**asdict(s))
    print("train on it with:", command("python", "train.py", f"--dataset={s.dataset}"), file=sys.stderr)

if __name__ == "__main__":
    main()
