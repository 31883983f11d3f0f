"""train.py, but no gradient flows from the sweeps into pass 0 (its own loss still trains it): for results.py."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lrt import GPT
from train import main

extend = GPT.extend


def extend_without_gradient(self, idx, cache, m=None):
    extend(self, idx, cache, m)
    if m is None:                               # pass 0; its loss is computed from cache.h, which stays
        cache.m_next, cache.kv = cache.m_next.detach(), [kv.detach() for kv in cache.kv]


GPT.extend = extend_without_gradient
main()
