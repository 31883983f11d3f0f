"""Sample text from a checkpoint:  python sample.py --out_dir=out --prompt="ROMEO:"
With a model of a task, its answers:  python sample.py --out_dir=out --prompt="1 0 1 1" """
import os, sys, time, zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from lrt import GPT, GPTConfig
from prepare_data import MAX_SEED, Codec, Unusable, fail, option, parse, read_text, script

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

def find_device(name=""):
    """The device of that name, or the best one here (cuda, mps, ..., cpu). ValueError if there is none."""
    name = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise Unusable(f"--device={name} cannot be used here: {str(e).splitlines()[0]}") from e

def load_checkpoint(path, device="cpu"):
    """(model, codec, checkpoint) from a file that train.py wrote, or a run's folder: its best.pt, or last.pt.
    Runs no code from it; a zip archive has checksums. Raises FileNotFoundError, or ValueError if unusable."""
    path = Path(os.path.expanduser(path))
    if path.suffix != ".pt":
        path = path / ("best.pt" if os.path.isfile(path / "best.pt") else "last.pt")
    try:
        with open(path, "rb") as f, zipfile.ZipFile(f) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
        last = torch.load(path, map_location=device, weights_only=True)
        weights = {n.replace("module.", "").replace("_orig_mod.", ""): w for n, w in last["model"].items()}
        config, codec = GPTConfig(**last["config"]), Codec(last["meta"]["codec"])
        sizes = *weights["embed.weight"].shape, len(weights["alpha"])
        if (config.vocab_size, config.n_embd, config.n_layer) != sizes:     # before so much memory is taken
            raise ValueError("the weights are not those of its config")
        model = GPT(config)
        model.load_state_dict(weights)
        return model.to(device).eval(), codec, {**last, "model": weights}
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint {path}; train.py writes one into its --out_dir") from None
    except Exception as e:      # a damaged or hostile file can raise anything at all
        what = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]:.150}"
        raise Unusable(f"{path} is not a checkpoint of this project, or cannot be read ({what})") from e

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
