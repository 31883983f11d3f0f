"""Texts that may be too long for memory: read in parts, from files or from tokens."""
import codecs
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import numpy as np

from support.files import reason
from support.script import Unusable

PART = 2 ** 17                  # bytes or tokens of a text in memory at once


@dataclass
class Text:
    """A text in two splits, where it is from, and its fingerprint. It may be too long for memory:
    each for loop over a split reads it anew, in parts."""
    source: str
    train: Iterable[str]
    val: Iterable[str]
    sha256: str


def text_of(source, train, val):
    """A Text with its fingerprint: the sha256 of all of it and, unless 90% is for training, of the
    number of characters that are."""
    digest = hashlib.sha256()
    sizes = []
    for split in (train, val):
        size = 0
        for part in split:
            digest.update(part.encode())
            size += len(part)
        sizes.append(size)
    if sizes[0] != int(sum(sizes) * 0.9):
        digest.update(f"cut after {sizes[0]}".encode())
    return Text(source, train, val, digest.hexdigest())


def short_text(source, text):
    """A Text of a string."""
    cut = int(len(text) * 0.9)
    return text_of(source, [text[:cut]], [text[cut:]])


class FileSplit:
    """The characters of files, in parts: of each (path, start, stop) those from start to stop."""

    def __init__(self, ranges):
        self.ranges = ranges

    def __iter__(self):
        for path, start, stop in self.ranges:
            at = 0
            for part in file_parts(path):
                yield part[max(0, start - at):max(0, stop - at)]
                at += len(part)
                if at >= stop:
                    break


def file_parts(path):
    """The text of a UTF-8 file in parts, line ends as they are, without a mark at its start.
    Raises Unusable if it cannot be read."""
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        f = open(os.path.expanduser(path), "rb")
    except (OSError, ValueError) as e:          # the latter: a name with a NUL
        raise Unusable(f"cannot read {path}: {reason(e)}") from e
    with f:
        try:
            while block := f.read(PART):
                yield utf8.decode(block)
            yield utf8.decode(b"", final=True)
        except UnicodeDecodeError as e:
            place = f.tell() - len(e.object) + e.start
            raise Unusable(f"cannot read {path} as UTF-8 text: {e.reason} "
                           f"(byte {place:,} is {e.object[e.start]:#x})") from e
        except OSError as e:
            raise Unusable(f"cannot read {path}: {reason(e)}") from e


def given_text(inputs, val_input=""):
    """The Text of files, joined: 90% of each for training, the rest for validation; or all of it
    for training, if validation has a file of its own."""
    train, val = [], []
    for path in inputs:
        size = count_characters(path)
        cut = size if val_input else int(size * 0.9)
        train.append((path, 0, cut))
        val.append((path, cut, size))
    source = "file: " + ", ".join(Path(path).name for path in inputs[:3])
    if len(inputs) > 3:
        source += f" and {len(inputs) - 3} more"
    if val_input:
        val = [(val_input, 0, count_characters(val_input))]
        source += f"; validation: {Path(val_input).name}"
    return text_of(source, FileSplit(train), FileSplit(val))


def count_characters(path):
    """The length of a text file. Raises Unusable for a pipe, which cannot be read once more."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise Unusable(f"{path} can be read only once; put the text into a file")
    return sum(len(part) for part in file_parts(path))


class TokenSplit:
    """The text of a file of tokens, in parts."""

    def __init__(self, path, codec):
        self.path = path
        self.codec = codec

    def __iter__(self):
        return self.codec.decode_parts(self.token_parts())

    def token_parts(self):
        with open(self.path, "rb") as f:
            while block := f.read(2 * PART):
                yield np.frombuffer(block, "<u2").tolist()


def beginning(split):
    """A thousand characters, or a few more, or all."""
    start = ""
    for part in split:
        start += part
        if len(start) >= 1000:
            break
    return start
