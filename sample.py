"""Sample text from a checkpoint:  python sample.py --out_dir=out --prompt="ROMEO:"
With a model of a task, its answers:  python sample.py --out_dir=out --prompt="1 0 1 1" """
import sys, time
from dataclasses import dataclass

import torch

from support.checkpoint import find_device, load_checkpoint
from support.files import read_text
from support.options import MAX_SEED, option, parse
from support.script import fail, script

@dataclass
class Settings:
    out_dir: str = option("out", "folder of a run (its best.pt, or else last.pt), or a checkpoint file", bool)
    prompt: str = option("", "text to go on from, or FILE:path; none: a line break")
    num_samples: int = option(1, "how many texts, one after the other", (1, 10 ** 9))
    max_new_tokens: int = option(500, "length of each", (1, 10 ** 12))
    temperature: float = option(0.8, "0: always the likeliest token", (0.0, 1000.0))
    top_k: int = option(200, "only from the k likeliest tokens", (1, 10 ** 9))
    seed: int = option(1337, "same seed, same text", (0, MAX_SEED))
    device: str = option("", "cpu, cuda, mps ...; none: the best one here")

def stream(model, codec, prompt, max_new_tokens, temperature, top_k, generator):
    """Print the prompt, a list of tokens, and what follows, as it comes. It may go on for ever: nothing is
    kept. Returns a line about time and prefill."""
    decode, cache = codec.decoder(), model.init_cache(1)
    print("".join(map(decode, prompt)), end="", flush=True)
    idx, start, first = torch.tensor([prompt], device=model.embed.weight.device), time.perf_counter(), 0
    for token in model.generate(idx, max_new_tokens, temperature, top_k, generator, cache):
        first = first or time.perf_counter()    # the prompt has been read
        print(decode(token.item()), end="", flush=True)
    print()
    speed = (max_new_tokens - 1) / max(time.perf_counter() - first, 1e-9)
    how = f"{cache.sweeps} sweeps, " + (f"last change {cache.residual:.0e}" if cache.residual else "exact")
    return (f"prompt of {len(prompt):,} tokens in {1000 * (first - start):.0f} ms "
            f"({how}), then {speed:,.0f} tokens per second")

@script
@torch.inference_mode()
def main(argv):
    s, given = parse(Settings, __doc__, argv)
    device = find_device(s.device)
    model, codec, _ = load_checkpoint(s.out_dir, device)
    text = read_text(s.prompt[5:]) if s.prompt.startswith("FILE:") else s.prompt
    start = codec.token_bytes.index(b"\n") if b"\n" in codec.token_bytes else 0
    prompt = codec.encode(text) if "prompt" in given or codec.kind == "numbers" else [start]
    if not prompt:
        fail('--prompt is empty; give some text, or to a model of a task numbers: --prompt="1 0 1 1"')
    if codec.kind == "numbers":                 # a task: it has an answer to each input, no text that goes on
        cache, prompt = model.init_cache(1), torch.tensor(prompt, device=device)
        return print(codec.decode([model.step(one[None], cache).argmax().item() for one in prompt]).strip())
    generator = torch.Generator(device).manual_seed(s.seed)
    for n in range(s.num_samples):
        print("---------------\n" if n else "", end="")
        line = stream(model, codec, prompt, s.max_new_tokens, s.temperature, s.top_k, generator)
    print(line, file=sys.stderr)

if __name__ == "__main__":
    main()
