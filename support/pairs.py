"""Byte pairs learned from a text (arXiv:1508.07909): over and over, the most frequent pair of
neighbours becomes a token. Arrays of numbers stand for words, since a large text has many."""
from collections import Counter

import numpy as np

from support.tokens import MAX_VOCAB, words_of

END = MAX_VOCAB - 1             # stands after each word; the last token has no need of its number
BLOCK = 2 ** 19                 # about how many characters of words are in a block
SLICE = 2 ** 17                 # how many pairs are counted at once


def learn_pairs(parts, merges):
    """The tokens, as bytes: the 256 bytes, and what `merges` merges make of them, or as many as
    there are pairs for. parts: a text, in parts. Of the most frequent pairs it is the last one in
    the order of bytes that is joined."""
    tokens = [bytes([b]) for b in range(256)]
    blocks = list(blocks_of(parts))
    pairs = PairCounts()
    for block in blocks:
        for start in range(0, len(block.symbols), SLICE):
            places = np.arange(start, min(start + SLICE, len(block.symbols)))
            pairs.add(*block.pairs_at(places))

    while len(tokens) < 256 + merges:
        likeliest = pairs.most_frequent()
        if not likeliest:
            break
        a, b = max(likeliest, key=lambda pair: [tokens[token] for token in pair])
        tokens.append(tokens[a] + tokens[b])
        if len(tokens) < 256 + merges:
            for block in blocks:
                pairs.add(*block.join(a, b, len(tokens) - 1))
    return tokens


def blocks_of(parts):
    """The words of a text with how often they occur, in blocks. One may be in several of them."""
    counts = Counter()
    for words in words_of(parts):
        counts.update(words)
        if sum(map(len, counts)) > BLOCK:
            yield Block(counts)
            counts = Counter()
    yield Block(counts)


class Block:
    """Words, each with a count. symbols: their tokens, (N,), with END after each word."""

    def __init__(self, counts):
        words = [np.frombuffer(word.encode(), np.uint8) for word in counts]
        lengths = np.array([len(word) + 1 for word in words], dtype=np.int64)
        self.counts = np.array(list(counts.values()), dtype=np.int32)
        self.symbols = np.full(lengths.sum(), END, dtype=np.uint16)
        inside = np.ones(len(self.symbols), dtype=bool)
        inside[lengths.cumsum() - 1] = False
        self.symbols[inside] = np.concatenate([*words, np.empty(0, np.uint8)])

    def pairs_at(self, places):
        """(keys, how often) of the pairs that begin at these places, without those over an END."""
        places = places[places + 1 < len(self.symbols)]
        first, second = self.symbols[places], self.symbols[places + 1]
        in_a_word = (first != END) & (second != END)
        keys = first[in_a_word].astype(np.int64) * MAX_VOCAB + second[in_a_word]
        word = np.searchsorted(np.flatnonzero(self.symbols == END), places[in_a_word])
        return keys, self.counts[word].astype(np.int64)

    def join(self, a, b, new):
        """Put the token `new` in the place of each a that b follows. (keys, changes of how often)
        of all pairs that are more or fewer for it."""
        at = self.places_of(a, b)
        if len(at) == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        keys_before, fewer = self.pairs_at(marked(len(self.symbols), at - 1, at, at + 1))
        self.symbols[at] = new
        self.symbols = np.delete(self.symbols, at + 1)
        at = at - np.arange(len(at))                    # as many symbols before it are gone
        keys_after, more = self.pairs_at(marked(len(self.symbols), at - 1, at))
        return np.concatenate([keys_before, keys_after]), np.concatenate([-fewer, more])

    def places_of(self, a, b):
        """Where a is followed by b; of a a a only the first two."""
        at = np.flatnonzero((self.symbols[:-1] == a) & (self.symbols[1:] == b))
        if a != b or len(at) == 0:
            return at
        begins = np.concatenate([[True], np.diff(at) > 1])          # a row of places side by side
        begin = at[begins][np.cumsum(begins) - 1]
        return at[(at - begin) % 2 == 0]


def marked(size, *places):
    """The places that are in any of several arrays, in order, without -1."""
    marks = np.zeros(size, dtype=bool)
    for some in places:
        marks[some[some >= 0]] = True
    return np.flatnonzero(marks)


class PairCounts:
    """How often each pair (a, b) occurs. Its key is a * MAX_VOCAB + b; keys are in order."""

    def __init__(self):
        self.keys = np.array([-1])                      # of no pair; there is always one
        self.counts = np.array([0])

    def add(self, keys, changes):
        """Add changes, (n,), of how often the pairs of keys, (n,), occur. Keys may repeat."""
        if len(keys) == 0:
            return
        keys, group = np.unique(keys, return_inverse=True)
        changes = np.bincount(group, changes, len(keys)).astype(np.int64)
        place = np.searchsorted(self.keys, keys)
        known = self.keys[np.minimum(place, len(self.keys) - 1)] == keys
        self.counts[place[known]] += changes[known]
        self.keys = np.insert(self.keys, place[~known], keys[~known])
        self.counts = np.insert(self.counts, place[~known], changes[~known])

    def most_frequent(self):
        """The pairs that occur most often; none if there are no pairs left."""
        most = self.counts.max()
        if most == 0:
            return []
        keys = self.keys[self.counts == most].tolist()
        return [divmod(key, MAX_VOCAB) for key in keys]
