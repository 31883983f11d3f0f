"""Text to token numbers and back, whole or in parts."""
import base64
import codecs
import functools
import re

import tiktoken

from support.script import Unusable

MAX_VOCAB = 2 ** 16             # what uint16 can number

# Byte pairs are merged inside of words. WORDS finds these, to learn and to encode: letters, digits
# or signs, with the space before them, and white space. A letter is what is nothing else, like the
# marks that many scripts put on letters. No word has more than 32, or a text without spaces would
# take for ever.
SIGNS = (r"!-/:-@\[-`{-~\xa1-\xbf\u2010-\u205e"
         r"\u3001-\u3003\u3008-\u301f\uff01-\uff0f\uff1a-\uff20")
WORDS = (rf" ?[^\s\d{SIGNS}]{{1,32}}| ?\d{{1,32}}| ?[{SIGNS}]{{1,32}}"
         r"|\s{1,32}(?!\S)|\s{1,32}")

# GPT-2's pieces have no longest one. But wherever they begin, they end at these places: before a
# space or line break that follows something else, before an ASCII sign that follows a letter or
# digit, between a sign and a letter of Chinese or Japanese.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_LAST_END = re.compile(r"(?s).*(?:\S(?=[ \n])"
                           r"|[0-9A-Za-z](?=[!-/:-@\[-`{-~])"
                           r"|[、。，！？；：](?=[一-龥ぁ-ゖァ-ヺ]))")


def words_of(parts):
    """The words of a text that comes in parts, as lists: the same as of the whole text at once,
    wherever the parts end."""
    rest = ""
    for part in parts:
        words = re.findall(WORDS, rest + part)
        rest = words.pop() if words else ""     # what follows may change the last one alone
        yield words
    yield re.findall(WORDS, rest)


def gpt2_pieces_whole(parts):
    """A text that comes in parts, in other parts, which end where a piece of GPT-2's ends."""
    waiting = []
    for part in parts:
        found = GPT2_LAST_END.match(part)
        if found:
            yield "".join(waiting) + part[:found.end()]
            waiting = [part[found.end():]]
        else:
            waiting.append(part)
    yield "".join(waiting)


class Codec:
    """Text to token numbers and back, as the "codec" entry of meta.json and checkpoints says.

    The entry has plain values: {"kind": "char", "chars": [...]}; {"kind": "bpe", "pattern": "words"
    or "gpt2", "tokens": [base64 of bytes, ...]}; or, for numbers with spaces between, {"kind":
    "numbers", "count": how many there are, "inputs": how many of them can be asked}.

    vocab_size: the number of tokens. token_bytes: the bytes of each.
    Raises ValueError, KeyError, TypeError or AttributeError if the entry is none of these."""

    def __init__(self, entry):
        self.kind = entry["kind"]
        if self.kind == "char":
            self.use_characters(entry["chars"])
        elif self.kind == "numbers":
            self.use_numbers(entry["count"], entry["inputs"])
        elif self.kind == "bpe":
            self.use_pairs(entry["pattern"], entry["tokens"])
        else:
            raise ValueError(f"no such tokens: {self.kind}")
        self.vocab_size = len(self.token_bytes)
        if len(set(self.token_bytes)) != self.vocab_size:
            raise ValueError("the tokens are not all different")

    def use_characters(self, chars):
        self.token_bytes = [char.encode() for char in chars]
        self.index = {char: i for i, char in enumerate(chars)}
        self.check_index()

    def use_numbers(self, count, inputs):
        names = [str(i) for i in range(min(count, MAX_VOCAB))]
        self.token_bytes = [f"{name} ".encode() for name in names]
        self.index = {name: i for i, name in enumerate(names[:inputs])}
        self.check_index()

    def check_index(self):
        if not self.index:
            raise ValueError("there are no tokens")

    def use_pairs(self, pattern, tokens):
        if pattern not in ("words", "gpt2"):
            raise ValueError(f"no such pattern: {pattern}")
        self.token_bytes = [base64.b64decode(token) for token in tokens]
        self.learned = pattern == "words"
        ranks = {token: i for i, token in enumerate(self.token_bytes)}
        if not all(bytes([b]) in ranks for b in range(256)):
            raise ValueError("a single byte is not among the tokens")
        self.engine = tiktoken.Encoding("bpe", pat_str="(?s).+" if self.learned else GPT2,
                                        mergeable_ranks=ranks, special_tokens={})
        self.encode_word = functools.lru_cache(2 ** 15)(self.engine.encode_ordinary)

    def encode(self, text):
        """Token numbers of a text. Raises Unusable, which names what it has no token for."""
        if self.kind == "numbers":
            return self.look_up(text.split())
        return [token for tokens in self.encode_parts([text]) for token in tokens]

    def encode_parts(self, parts):
        """Token numbers of a text that comes in parts, as lists: those of the whole text at once,
        wherever the parts end. Not for numbers."""
        if self.kind == "char":
            for part in parts:
                yield self.look_up(part)
        elif self.learned:
            for words in words_of(parts):
                yield [token for word in words for token in self.encode_word(word)]
        else:
            for part in gpt2_pieces_whole(parts):
                yield self.engine.encode_ordinary(part)

    def look_up(self, names):
        """The token of each character or number."""
        unknown = sorted(set(names).difference(self.index))
        if not unknown:
            return [self.index[name] for name in names]
        known = f"0 to {len(self.index) - 1}, with spaces between"
        if self.kind == "char":
            known = f"{''.join(self.index)!r:.200}"
        raise Unusable(f"no token for {' '.join(map(repr, unknown[:10]))}; known: {known}")

    def decode(self, tokens):
        """The text of token numbers; what is no UTF-8 becomes a replacement character."""
        return b"".join(self.token_bytes[t] for t in tokens).decode("utf-8", errors="replace")

    def decode_parts(self, parts):
        """The text of lists of token numbers, in parts: what encode_parts() was given, joined.
        Raises IndexError or UnicodeDecodeError if it cannot have been made by it."""
        utf8 = codecs.getincrementaldecoder("utf-8")()
        for tokens in parts:
            yield utf8.decode(b"".join([self.token_bytes[t] for t in tokens]))
        yield utf8.decode(b"", final=True)

    def decoder(self):
        """A function from token number to text, which holds unfinished characters back."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: utf8.decode(self.token_bytes[token])
