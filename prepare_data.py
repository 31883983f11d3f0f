"""Prepare a text for training: data/NAME/train.bin and val.bin (uint16 tokens), and meta.json.

    python prepare_data.py                              tiny Shakespeare, a token per character
    python prepare_data.py --dataset=shakespeare-gpt2   the same text in GPT-2's tokens
    python prepare_data.py --dataset=python             the source of Python's own modules
    python prepare_data.py --dataset=mine --input=FILE  any UTF-8 text

The first 90 % are for training, the rest for validation, as in nanoGPT. The tasks (parity, swaps)
need no files: train.py draws their rows as it goes.
"""
import argparse
import hashlib
import inspect
import itertools
import json
import math
import os
import re
import sys
import sysconfig
import urllib.request
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

SHAKESPEARE = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
               "input.txt")
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PYTHON = "the source of Python"


# ---- What all scripts share: the command line, errors, files

class UsageError(ValueError):
    """What the user asked for cannot be done. The message says why, and what to do instead."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"{message} (-h lists all settings)")


def parse_args(settings_class, doc, argv=None):
    """Read --name=value for each field of a dataclass; argv None: from the command line. Returns a
    dict of what was typed. Defaults and comments of the fields are the help text."""
    text = ["settings, and their defaults:"]
    for line in inspect.getsource(settings_class).splitlines()[2:]:
        field = re.fullmatch(r" +(\w+): \w+ = (.*?) *(# .*)?", line)
        text.append(f"  {f'--{field[1]}={field[2]}':<32} {field[3] or ''}" if field else line)
    parser = Parser(usage="%(prog)s [--name=value ...]", description=doc, epilog="\n".join(text),
                    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                    argument_default=argparse.SUPPRESS)
    for field in fields(settings_class):
        parser.add_argument(f"--{field.name}", type=type(field.default), help=argparse.SUPPRESS)
    return vars(parser.parse_args(argv))


def check_numbers(s, least):
    """Raises UsageError unless all numbers in a dataclass are finite, and at least 0 or what
    `least` says."""
    for field in fields(s):
        value, low = getattr(s, field.name), least.get(field.name, 0)
        if not isinstance(value, str) and not low <= value <= 10 ** 9:      # nan neither
            raise UsageError(f"--{field.name}={value}: must be from {low} to 1,000,000,000")


def run_script(main):
    """Call main() for a shell. What the user has to mend ends it in one line; a bug has its
    traceback."""
    sys.stdout.reconfigure(errors="replace")        # a terminal may lack characters
    try:
        main()
    except (OSError, UsageError) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


def read_text(path):
    """The text of a UTF-8 file, with its line ends as they are. Raises UsageError or OSError."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not UTF-8 ({e}); convert it first") from e
    if "\0" in text:
        raise UsageError(f"{path} is not UTF-8 text: it has zero bytes; convert it first")
    return text


def replace_file(path, write):
    """write(temporary path); then it takes the place of the old file, which was whole until now."""
    temporary = Path(f"{path}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- Text to tokens, and back

class Codec:
    """A tokenizer. spec: "gpt2", or a string of the characters that are tokens. Checkpoints keep
    it, so that they can be sampled without the data. token_bytes: what each token stands for."""

    def __init__(self, spec):
        self.spec = spec
        if spec == "gpt2":
            import tiktoken             # only here: characters do not need it
            try:
                self.gpt2 = tiktoken.get_encoding("gpt2")
            except Exception as e:      # tiktoken downloads it once, which can fail in many ways
                raise UsageError(f"GPT-2's tokens cannot be downloaded ({e}); characters need no "
                                 "download: --tokenizer=char") from e
            self.token_bytes = [self.gpt2.decode_single_token_bytes(i) for i in range(50256)]
        else:
            self.number = {char: i for i, char in enumerate(spec)}
            self.token_bytes = [char.encode() for char in spec]
        self.vocab_size = len(self.token_bytes)

    def encode(self, text):
        """Raises UsageError if the text has characters that are no tokens."""
        if self.spec == "gpt2":
            return self.gpt2.encode_ordinary(text)
        unknown = sorted(set(text) - set(self.number))
        if unknown:
            raise UsageError(f"the training text had none of these characters: "
                             f"{''.join(unknown[:20])!r}")
        return [self.number[char] for char in text]


# ---- Tasks. TASKS[name][state, input] is the next state, which is what the model has to say

def swaps_table():
    """Five objects on five places: 120 states. Input 0 does nothing, 1 to 10 swap two places."""
    states = list(itertools.permutations(range(5)))
    swaps = [(0, 0), *itertools.combinations(range(5), 2)]
    table = np.zeros((len(states), len(swaps)), dtype=np.int64)
    for n, state in enumerate(states):
        for m, (i, j) in enumerate(swaps):
            after = list(state)
            after[i], after[j] = after[j], after[i]
            table[n, m] = states.index(tuple(after))
    return table


TASKS = {"parity": np.array([[0, 1], [1, 0]]), "swaps": swaps_table()}


def task_rows(task, shape, rng):
    """Random inputs, and the state after each of them: two arrays of this shape (..., T)."""
    x = rng.integers(TASKS[task].shape[1], size=shape)
    y, state = np.zeros_like(x), np.zeros(shape[:-1], dtype=np.int64)
    for t in range(shape[-1]):
        state = TASKS[task][state, x[..., t]]
        y[..., t] = state
    return x, y


# ---- data/NAME/

def folder_of(dataset):
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", dataset) or dataset in TASKS:
        raise UsageError(f"--dataset={dataset}: must be the name of a folder in data/")
    return Path("data", dataset)


def python_source():
    """The source of Python's own modules, which every Python has. Returns the text, its source."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [data.decode() for data in map(Path.read_bytes, files) if data.isascii()]
    return "\n".join(texts).replace("\r\n", "\n"), f"{PYTHON} {sys.version.split()[0]}"


def shakespeare(folder):
    """Tiny Shakespeare. With no network python_source(), so that there is always something to train
    on; but that replaces nothing."""
    print(f"downloading {SHAKESPEARE}", file=sys.stderr)
    try:
        data = urllib.request.urlopen(SHAKESPEARE, timeout=10).read()
        if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
            raise OSError("another file came")
        return data.decode(), SHAKESPEARE
    except Exception as e:              # a download can fail in many ways
        reason = f"tiny Shakespeare cannot be downloaded ({e})"
        if (folder / "meta.json").exists():
            raise UsageError(f"{reason}; {folder} stays as it is") from e
        print(f"WARNING: {reason}.\nWARNING: The text is {PYTHON} instead, which gives other "
              f"losses.\nWARNING: If you have the file: python prepare_data.py "
              f"--dataset={folder.name} --input=FILE", file=sys.stderr)
        return python_source()


def prepare(dataset="shakespeare", tokenizer="", input=""):
    """Write data/dataset/. Raises UsageError or OSError before anything is replaced."""
    folder = folder_of(dataset)
    tokenizer = tokenizer or ("gpt2" if dataset.endswith("gpt2") else "char")
    if tokenizer not in ("char", "gpt2"):
        raise UsageError(f"--tokenizer={tokenizer}: must be char or gpt2")
    if input:
        text, source = read_text(input), input
    elif dataset.removesuffix("-gpt2") == "python":
        text, source = python_source()
    elif dataset.removesuffix("-gpt2") == "shakespeare":
        text, source = shakespeare(folder)
    else:
        raise UsageError(f"there is no {folder}; to make it: python prepare_data.py "
                         f"--dataset={dataset} --input=FILE")
    codec = Codec("gpt2" if tokenizer == "gpt2" else "".join(sorted(set(text))))
    if codec.vocab_size > 2 ** 16:
        raise UsageError(f"{source} has {codec.vocab_size:,} different characters; take "
                         "--tokenizer=gpt2")
    cut = int(0.9 * len(text))
    train, val = (np.array(codec.encode(part), np.uint16) for part in (text[:cut], text[cut:]))
    if min(len(train), len(val)) < 2:
        raise UsageError(f"{source} is too short: {len(text)} characters")
    meta = {"source": source, "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "codec": codec.spec, "tokens": [len(train), len(val)],
            "bytes_per_token": len(text[cut:].encode()) / len(val)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)      # comes last: it says that all is there
    for name, data in {"train.bin": train.tobytes(), "val.bin": val.tobytes(),
                       "meta.json": json.dumps(meta).encode()}.items():
        replace_file(folder / name, lambda path: path.write_bytes(data))
    print(f"{folder}: {source}: {len(train):,} tokens for training, {len(val):,} for validation, "
          f"vocabulary of {codec.vocab_size:,}", file=sys.stderr)


def load(dataset):
    """Meta data, and the tokens of both splits, as files in memory; what is not there yet is
    prepared. Raises UsageError if the files are damaged."""
    folder = folder_of(dataset)
    if not (folder / "meta.json").exists():
        prepare(dataset)
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        kinds = [type(meta[name]) for name in ("source", "sha256", "codec", "bytes_per_token")]
        if kinds != [str, str, str, float] or not 0 < meta["bytes_per_token"] < math.inf:
            raise ValueError("meta.json has other types")
        data = [np.memmap(folder / f"{name}.bin", np.uint16, "r") for name in ("train", "val")]
        if [len(part) for part in data] != meta["tokens"]:
            raise ValueError("other numbers of tokens than in meta.json")
        if max(part.max() for part in data) >= Codec(meta["codec"]).vocab_size:
            raise ValueError("tokens outside the vocabulary")
    except UsageError:
        raise
    except (ValueError, LookupError, TypeError, RecursionError) as e:
        raise UsageError(f"{folder} is damaged, or of an older edition ({e}); prepare it again: "
                         f"python prepare_data.py --dataset={dataset}") from e
    if dataset.startswith("shakespeare") and meta["source"].startswith(PYTHON):
        print(f"WARNING: {folder} is {meta['source']}; prepare_data.py tries the download again",
              file=sys.stderr)
    return meta, *data


@dataclass
class Settings:
    dataset: str = "shakespeare"    # the name of a folder in data/
    tokenizer: str = ""             # char or gpt2; default: gpt2 if the name ends so, else char
    input: str = ""                 # a UTF-8 text; default: tiny Shakespeare, downloaded


def main(argv=None):
    typed = parse_args(Settings, __doc__, argv)
    if "dataset" not in typed:
        if typed:
            raise UsageError("this needs a name for its data: --dataset=NAME")
        if Path("data/shakespeare/meta.json").exists() \
                and not load("shakespeare")[0]["source"].startswith(PYTHON):
            print("data/shakespeare is there; --dataset=shakespeare prepares it again")
            return
    prepare(**typed)


if __name__ == "__main__":
    run_script(main)
