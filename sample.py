"""Sample text from a checkpoint:  python sample.py --out_dir=out --prompt="ROMEO:"
With a model of a task, its answers:  python sample.py --out_dir=out --prompt="1 0 1 1" """
import time
from dataclasses import dataclass

import torch

from support.checkpoint import find_device, load_checkpoint
from support.files import read_text
from support.options import MAX_SEED, option, parse
from support.script import Unusable, say, script, warn


@dataclass
class Settings:
    out_dir: str = option("out", "folder of a run (its best.pt, or else last.pt), or a checkpoint",
                          bool)
    prompt: str = option("", "text to go on from, or FILE:path; none: a line break")
    num_samples: int = option(1, "how many texts, one after the other", (1, 10 ** 9))
    max_new_tokens: int = option(500, "length of each", (1, 10 ** 12))
    temperature: float = option(0.8, "0: always the likeliest token", (0.0, 1000.0))
    top_k: int = option(200, "only from the k likeliest tokens", (1, 10 ** 9))
    seed: int = option(1337, "same seed, same text", (0, MAX_SEED))
    device: str = option("", "cpu, cuda, mps ...; none: the best one here")


@script
def main(argv):
    print_samples(argv)


def print_samples(argv):
    """What main() does, for who goes on afterwards: it does not exit but raises Unusable or
    FileNotFoundError, and BrokenPipeError when nobody reads any more."""
    s, given = parse(Settings, __doc__, argv)
    device = find_device(s.device)
    model, codec, _ = load_checkpoint(s.out_dir, device)
    is_task = codec.kind == "numbers"
    if "prompt" in given or is_task:
        prompt = codec.encode(prompt_text(s.prompt))
    else:
        prompt = [first_token(codec)]
    if not prompt:
        raise Unusable("--prompt is empty; give some text, or to a model of a task numbers: "
                       '--prompt="1 0 1 1"')
    prompt = torch.tensor([prompt], device=device)
    if is_task:
        show(codec.decode(answers(model, prompt)).strip() + "\n")
        return
    generator = torch.Generator(device).manual_seed(s.seed)
    for n in range(s.num_samples):
        if n > 0:
            show("---------------\n")
        speed = stream(model, codec, prompt, s, generator)
    warn(speed)


def prompt_text(prompt):
    """What the prompt says, or what is in the file that it names."""
    if prompt.startswith("FILE:"):
        return read_text(prompt.removeprefix("FILE:"))
    return prompt


def first_token(codec):
    """What a text begins after: a line break, where there is one among the tokens."""
    if b"\n" in codec.token_bytes:
        return codec.token_bytes.index(b"\n")
    return 0


def show(text):
    """Print at once, for who reads along. There is nothing more to do for who has left."""
    if not say(text, end=""):
        raise BrokenPipeError


@torch.no_grad()
def answers(model, inputs):
    """A task's state after each input (1, T), one by one, as it is trained to tell: T numbers."""
    cache = model.init_cache(1)
    return [model.step(one, cache).argmax().item() for one in inputs.T]


def stream(model, codec, prompt, s, generator):
    """Print the prompt (1, T) and what follows, token by token. It may go on for ever: nothing is
    kept. Returns a line about time and prefill."""
    decode = codec.decoder()
    show("".join(decode(token) for token in prompt[0].tolist()))
    cache = model.init_cache(1)
    start = time.perf_counter()
    first = None
    for token in model.generate(prompt, s.max_new_tokens, s.temperature, s.top_k, generator, cache):
        if first is None:
            first = time.perf_counter()             # the prompt has been read
        show(decode(token.item()))
    show("\n")
    seconds = time.perf_counter() - first
    change = f"last change {cache.residual:.0e}" if cache.residual else "exact"
    return (f"prompt of {prompt.size(1):,} tokens in {1000 * (first - start):.0f} ms "
            f"({cache.sweeps} sweeps, {change}), "
            f"then {(s.max_new_tokens - 1) / max(seconds, 1e-9):,.0f} tokens per second")


if __name__ == "__main__":
    main()
