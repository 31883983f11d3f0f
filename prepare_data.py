"""Turn text into data/NAME/: train.bin and val.bin (uint16 token numbers) and meta.json (codec, provenance).

    python prepare_data.py                                  tiny Shakespeare, a token per character
    python prepare_data.py --tokenizer=bpe:1024             the same, 1,024 merges learned from it
    python prepare_data.py --dataset=mine --input=FILE      any UTF-8 text, into data/mine/
    python prepare_data.py --dataset=parity --length=32     a task, not text: inputs and targets; or swaps

The first 90% of the characters are for training, the rest for validation, as in nanoGPT."""
import argparse, base64, codecs, difflib, hashlib, itertools, json, os, re, shlex, subprocess, sys, time
import urllib.request
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import tiktoken
try:
    import fcntl
    lock_now = lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
except ImportError:     # on Windows
    import msvcrt
    lock_now = lambda f: msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MAX_VOCAB = 2 ** 16             # what uint16 can number
MAX_SEED = 2 ** 32 - 1
HELD = []                       # the open files of own(): one that is forgotten is closed, and its lock gone

# ---- Shared by all scripts: how to fail, settings, files
def fail(message):
    """One line on stderr, exit status 2."""
    print("error:", " ".join(str(message).splitlines()), file=sys.stderr)
    sys.exit(2)

class Unusable(ValueError):
    """Something of a user's cannot be used. The message is all that there is to say of it."""

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
        except (OSError, Unusable) as e:            # a folder one may not enter, a name too long, ...
            fail(f"{e.filename}: {e.strerror}" if getattr(e, "filename", None) else e)
        except (MemoryError, RuntimeError) as e:
            if isinstance(e, MemoryError) or re.search("(out of|not enough|allocate) memory", str(e)):
                fail(f"not enough memory; smaller sizes need less ({e!s:.150})")
            raise
    return guarded

def option(default, help, allowed=None):
    """A field of a dataclass of settings. allowed: (least, most), a list of values, bool: not empty; None."""
    rule = {int: "a whole number", float: "a number", str: "text"}[type(default)]
    rule += " from {:,} to {:,}".format(*allowed) if type(allowed) is tuple else ", not empty" * bool(allowed)
    if isinstance(allowed, list):
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
        value = float("nan")                        # which is never allowed
    if not (value in allowed if isinstance(allowed, list) else bool(text) if allowed is bool else
            f.type is str or allowed[0] <= value <= allowed[1]):
        fail(f"--{f.name}={text}: must be {f.metadata['rule']}")
    return value

def parse(settings_class, doc, argv, **presets):
    """(instance of a dataclass of options, names of those on the command line). presets: other defaults."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(f"{message}; settings are written --name=value, and -h lists them")
    options = {f.name: f for f in fields(settings_class)}
    for name, f in options.items():
        note = f"({f.metadata['rule']}; default: {'none' if f.default == '' else f.default})"
        parser.add_argument(f"--{name}", metavar="X", help=f"{f.metadata['help']} {note}".replace("%", "%%"))
    typed, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].partition("=")[0]
        name = flag.lstrip("-").replace("-", "_").lower()
        said = {o: re.findall("[a-z]+", f"{o} {f.metadata['help']}".lower()) for o, f in options.items()}
        near = difflib.get_close_matches(name, options, 1, 0.85) + [o for o in said if name in said[o]]
        parser.error(f"there is no {flag}" + (f" (did you mean --{near[0]}?)" if near else ""))
    given = {name: value_of(options[name], text) for name, text in vars(typed).items()}
    return settings_class(**{**presets, **given}), tuple(given)

# A line that a shell takes for a command of these words.
command = lambda *words: (subprocess.list2cmdline if os.name == "nt" else shlex.join)(map(str, words))

def own(folder, what, wait=False):
    """Make a folder and keep other processes out of it until the returned file is closed or the process ends,
    however it ends. Who is second waits, or fails with the advice to use another `what`."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        HELD.append(lock := open(Path(folder) / ".lock", "ab"))
    except (OSError, ValueError) as e:
        fail(f"{what}: {folder} cannot be used: {getattr(e, 'strerror', e)}")
    for tries in itertools.count():
        try:
            lock_now(lock)
            return lock
        except (BlockingIOError, PermissionError):      # it is taken; the latter is Windows'
            if not wait:
                fail(f"{folder} is in use by another run; wait for it or use another {what}")
        except OSError:                                 # a file system without locks
            return lock
        if tries == 10:
            print(f"waiting for another run that uses {folder}", file=sys.stderr)
        time.sleep(0.1)

def write_atomic(*files):
    """path, write, path, write, ...: each write(f) fills a temporary file; then all take their names."""
    files = [(Path(path), Path(f"{path}.tmp"), write) for path, write in zip(files[::2], files[1::2])]
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
            temporary.unlink(missing_ok=True)
        fail(f"cannot write {path}: {getattr(e, 'strerror', None) or e}")

def read_text(path):
    """The text of a UTF-8 file, line ends as they are."""
    try:
        return Path(os.path.expanduser(path)).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as e:
        fail(f"cannot read {path or 'a file with no name'} as UTF-8 text: {getattr(e, 'strerror', e)}")

# ---- Tokens
# Byte pairs are merged inside of pieces of a text. WORDS cuts it, to learn and to encode: letters, digits or
# signs, with the space before them, and white space. A letter is what is nothing else, like the marks that
# many scripts put on letters. No piece has more than 32, or a text without spaces would take for ever.
SIGNS = r"!-/:-@\[-`{-~\xa1-\xbf\u2010-\u205e\u3001-\u3003\u3008-\u301f\uff01-\uff0f\uff1a-\uff20"
WORDS = rf" ?[^\s\d{SIGNS}]{{1,32}}| ?\d{{1,32}}| ?[{SIGNS}]{{1,32}}|\s{{1,32}}(?!\S)|\s{{1,32}}"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

class Codec:
    """Text to token numbers and back, as the "codec" entry of meta.json and checkpoints says, plain values:
    {"kind": "char", "chars": [...]}, {"kind": "bpe", "pattern": ..., "tokens": [base64 of bytes]} or, for
    numbers with spaces between, {"kind": "numbers", "count": ..., "inputs": how many can be asked}.
    token_bytes: the bytes of each token. Raises ValueError, KeyError or TypeError if the entry is another."""
    def __init__(self, entry):
        self.kind = entry["kind"]
        if self.kind == "bpe":
            self.token_bytes = [base64.b64decode(t) for t in entry["tokens"]]
            self.learned = {"words": True, "gpt2": False}[entry["pattern"]]
            ranks = {t: i for i, t in enumerate(self.token_bytes)}
            good = len(ranks) == len(self.token_bytes) and all(bytes([b]) in ranks for b in range(256))
            self.engine = tiktoken.Encoding("bpe", pat_str="(?s).+" if self.learned else GPT2,
                                            mergeable_ranks=ranks, special_tokens={})
        else:
            numbers = {"numbers": True, "char": False}[self.kind]
            names = [str(i) for i in range(min(entry["count"], MAX_VOCAB))] if numbers else entry["chars"]
            self.token_bytes = [f"{name} ".encode() if numbers else name.encode() for name in names]
            self.index = {name: i for i, name in enumerate(names[:entry["inputs"] if numbers else None])}
            good = 0 < len(self.index) and len(set(names)) == len(names)
        if not good:
            raise ValueError("the tokens are none, or not all different, or a single byte is not among them")
        self.vocab_size = len(self.token_bytes)

    def encode(self, text):
        """Token numbers of a text. Raises ValueError that names what it has no token for."""
        if self.kind == "bpe":
            pieces = re.findall(WORDS, text) if self.learned else [text]
            tokens = {piece: self.engine.encode_ordinary(piece) for piece in set(pieces)}
            return [token for piece in pieces for token in tokens[piece]]
        items = text if self.kind == "char" else text.split()
        if unknown := sorted(set(items) - set(self.index)):
            count, chars = len(self.index), "".join(self.index)
            known = f"{chars!r:.200}" if self.kind == "char" else f"0 to {count - 1}, with spaces between"
            raise Unusable(f"no token for {' '.join(map(repr, unknown[:10]))}; known: {known}")
        return [self.index[item] for item in items]

    def decoder(self):
        """A function from token number to text, for streaming: unfinished characters are held back."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: utf8.decode(self.token_bytes[token])

    def decode(self, tokens):
        return b"".join(self.token_bytes[t] for t in tokens).decode("utf-8", errors="replace")

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
