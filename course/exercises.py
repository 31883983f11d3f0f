"""The exercises, in the order in which lrt.py is read."""

EXERCISES = [       # (function, points, minutes, what to write)
    ("shift_right", 5, 10, "the memory of every position: the latent of the one before it"),
    ("Cache.advance", 7, 30, "hand on the latent; keep the keys and values that the next token sees"),
    ("Block.qkv", 12, 40, "queries, keys and values; the memory enters through gates"),
    ("GPT.layers", 13, 50, "the equations of one pass"),
    ("GPT.recur", 8, 20, "the recurrence, one token"),
    ("GPT.refine", 13, 60, "a subset pass"),
    ("GPT.forward", 12, 50, "the dial: pass 0, sweeps, loss"),
    ("GPT.prefill", 10, 60, "a prompt in parallel, until it has settled"),
]
KEPT = {"GPT.forward": "return self.forward_sequential(idx, targets)"}     # the body up to this line is given
