"""Text to token numbers and back."""
import base64, codecs, re

import tiktoken

from support.script import Unusable

MAX_VOCAB = 2 ** 16             # what uint16 can number

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
