"""train.py, but no gradient flows from the sweeps into pass 0 (its own loss still trains it): an experiment of results.py."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import lrt
import train

fill = lrt.GPT.fill


def fill_without_gradient(self, idx, subsets, cache=None):
    buffer = fill(self, idx, subsets, cache)
    buffer.state = [x.detach() for x in buffer.state]
    buffer.k, buffer.v = ([[x.detach() for x in layer] for layer in layers] for layers in (buffer.k, buffer.v))
    return buffer


lrt.GPT.fill = fill_without_gradient
train.main()
