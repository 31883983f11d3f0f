"""Byte pairs learned from a text (arXiv:1508.07909): over and over, the most frequent pair of
neighbours becomes a token. Arrays of numbers stand for words, since a large text has many."""
from collections import Counter

import numpy as np

from support.tokens import MAX_VOCAB, words_of

END = MAX_VOCAB - 1             # stands after each word; the last token has no need of its number
BLOCK = 2 ** 18                 # about how many characters of words are in a block
SLICE = 2 ** 17                 # how many pairs are counted at once


def learn_pairs(parts, merges):
    """The tokens, as bytes: the 256 bytes, and what `merges` merges make of them, or as many as
    there are pairs for. parts: a text, in parts. Of the most frequent pairs it is the last one in
    the order of bytes that is joined."""
    tokens = [bytes([b]) for b in range(256)]
    blocks = list(blocks_of(parts))
    pairs = PairCounts()
    for block in blocks:
        for keys, counts in block.all_pairs():
            pairs.add(keys, counts)

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
        data = b"".join(word.encode() + b"\xff" for word in counts)     # which UTF-8 does not have
        self.symbols = np.frombuffer(data, np.uint8).astype(np.uint16)
        self.symbols[self.symbols == 0xff] = END
        self.counts = np.array(list(counts.values()), dtype=np.int32)

    def all_pairs(self):
        """(keys, how often) of all pairs, a part at a time."""
        ends = np.flatnonzero(self.symbols == END)
        for start in range(0, len(self.symbols) - 1, SLICE):
            places = np.arange(start, min(start + SLICE, len(self.symbols) - 1))
            yield self.pairs_at(places, self.counts[np.searchsorted(ends, places)])

    def pairs_at(self, places, counts):
        """(keys, counts) of the pairs that begin at these places, without those over an END."""
        first, second = self.symbols[places], self.symbols[places + 1]
        in_a_word = (first != END) & (second != END)
        keys = first[in_a_word].astype(np.int64) * MAX_VOCAB + second[in_a_word]
        return keys, counts[in_a_word]

    def join(self, a, b, new):
        """Put the token `new` in the place of each a that b follows. (keys, changes of how often)
        of all pairs that are more or fewer for it."""
        at = self.places_of(a, b)
        if len(at) == 0:
            return at, at
        ends = np.flatnonzero(self.symbols == END)
        counts = self.counts[np.searchsorted(ends, at)]
        keys_before, fewer = self.pairs_at(*around(at, [-1, 0, 1], counts))
        self.symbols[at] = new
        self.symbols = np.delete(self.symbols, at + 1)
        at = at - np.arange(len(at))                    # as many symbols before it are gone
        keys_after, more = self.pairs_at(*around(at, [-1, 0], counts))
        return np.concatenate([keys_before, keys_after]), np.concatenate([-fewer, more])

    def places_of(self, a, b):
        """Where a is followed by b; of a a a only the first two."""
        at = np.flatnonzero(self.symbols == a)
        at = at[self.symbols[at + 1] == b]              # after each a there is at least an END
        if a != b or len(at) == 0:
            return at
        begins = np.diff(at, prepend=-2) > 1                        # a row of places side by side
        begin = at[begins][np.cumsum(begins) - 1]
        return at[(at - begin) % 2 == 0]


def around(at, offsets, counts):
    """(places, counts) at these offsets from each place, in order; each place once, and not -1."""
    places = (at[:, None] + np.array(offsets)).ravel()
    once = np.diff(places, prepend=-1) > 0
    return places[once], np.repeat(counts, len(offsets))[once]


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
