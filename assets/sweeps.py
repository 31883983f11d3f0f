"""How many sweeps a trained model needs:  python assets/sweeps.py out out-longer   (-h: options)

For each run's folder: the exact loss, decoded token by token; how far from it the loss is after K
sweeps of S subsets, on the same rows of the validation split; and the first K from which on it is
within --within of it. Rows are as long as the run's block_size.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from lrt import cross_entropy
from prepare_data import load
from support.checkpoint import load_checkpoint
from support.options import option, parse_with_folders
from support.script import Unusable, say, script


@dataclass
class Settings:
    subsets: int = option(4, "S", (1, 10 ** 6))
    most: int = option(8, "the most sweeps that are tried, K", (1, 10 ** 6))
    within: float = option(0.002, "how near the loss has to be", (0, 10))
    tokens: int = option(16384, "validation tokens that it is measured on", (1, 10 ** 9))


@torch.no_grad()
def losses(model, idx, targets, S, most):
    """The exact loss, and those after 1 .. most sweeps."""
    exact = cross_entropy(model.forward_sequential(idx)[0], targets).item()
    after = []
    for K in range(1, most + 1):
        logits, _ = model(idx, None, subsets=S, sweeps=K)
        after.append(cross_entropy(logits, targets).item())
    return exact, after


def rows_of(folder, T, tokens):
    """(idx, targets): rows of T tokens of the validation split of what the run was trained on."""
    _, _, checkpoint = load_checkpoint(folder)
    split = load(checkpoint["meta"]["dataset"])[2]["val"]
    n = max(1, min(tokens, len(split) - 1) // T)
    if len(split) <= n * T:
        raise Unusable(f"{folder}: the validation split has less than {T + 1} tokens")
    text = torch.tensor(split[:n * T + 1].astype("int64"))
    return text[:-1].view(n, T), text[1:].view(n, T)


def enough(differences, within):
    """The first K from which on all differences are small, or what says that there is none."""
    for K in range(1, len(differences) + 1):
        if all(abs(d) <= within for d in differences[K - 1:]):
            return f"{K}"
    return f"> {len(differences)}"


@script
def main(argv):
    folders, s, _ = parse_with_folders(Settings, __doc__, argv)
    heads = "".join(f"{f'K = {K}':>9}" for K in range(1, s.most + 1))
    say(f"S = {s.subsets}\n{'T':>6}{'steps':>8}{'exact':>9}{heads}{'enough':>8}  run")
    for folder in folders:
        model, _, checkpoint = load_checkpoint(folder)
        if not model.config.lrt:
            raise Unusable(f"{folder} is a plain GPT, which has no sweeps")
        T = model.config.block_size
        idx, targets = rows_of(folder, T, s.tokens)
        exact, after = losses(model, idx, targets, s.subsets, s.most)
        differences = [loss - exact for loss in after]
        shown = "".join(f"{d:+9.4f}" for d in differences)
        say(f"{T:6}{checkpoint['iter']:8,}{exact:9.4f}{shown}"
            f"{enough(differences, s.within):>8}  {folder}")


if __name__ == "__main__":
    main()
