"""Sample from a trained model:

    python sample.py --out_dir=out --prompt="ROMEO:"
    python sample.py --out_dir=out-parity --prompt="1 0 1 1"      a task: the state after each input
"""
import codecs
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lrt import GPT, GPTConfig
from prepare_data import (TASKS, Codec, UsageError, check_numbers, parse_args, read_text,
                          run_script)


@dataclass
class Settings:
    out_dir: str = "out"            # the folder of a run, or a checkpoint
    prompt: str = ""                # a text, or FILE:path; default: a line break
    num_samples: int = 1
    max_new_tokens: int = 500       # it never runs out of context: the attention window slides
    temperature: float = 0.8        # 0: always the likeliest token
    top_k: int = 200                # only from the k likeliest
    seed: int = 1337
    device: str = "cpu"


CHECKPOINT = {"model": dict, "config": dict, "settings": dict, "step": int, "log": list,
              "losses": list, "parts": int, "optimizers": list}


def find_device(name):
    """The name of a device that works; "": cuda, mps, ... if there is one. Raises UsageError."""
    name = name or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"        # torchrun: a GPU for each process
    try:
        torch.zeros(1, device=name).item()
    except Exception as e:              # each kind of device has its own
        raise UsageError(f"--device={name} cannot be used here") from e
    return name


def load_checkpoint(path, device="cpu"):
    """The model, and all else in the checkpoint, of a run's folder (its best.pt, else its last.pt)
    or of a file. Runs no code from it. Raises UsageError if there is none, or it is damaged."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / ("best.pt" if (path / "best.pt").exists() else "last.pt")
    if not path.exists():
        raise UsageError(f"there is no checkpoint {path}; train.py writes one into its --out_dir")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(checkpoint[name], kind) for name, kind in CHECKPOINT.items()):
            raise TypeError("parts have other types")
        numbers = [row[name] for row in checkpoint["log"] for name in ("step", "exact", "no_memory")
                   if name == "step" or "exact" in row]
        if not all(isinstance(number, (int, float)) for number in numbers + checkpoint["losses"]):
            raise TypeError("the log has other types")
        config, weights = checkpoint["config"], checkpoint["model"]
        if [*weights["embed.weight"].shape, *weights["alpha"].shape] != [
                config["vocab_size"], config["n_embd"], config["n_layer"]]:     # before it is built
            raise ValueError("the weights have other sizes than the model")
        model = GPT(GPTConfig(**config))
        model.load_state_dict(weights)
        if checkpoint["settings"]["dataset"] not in TASKS:
            if Codec(checkpoint["codec"]).vocab_size != config["vocab_size"]:
                raise ValueError("the tokens are not those of the model")
    except (OSError, UsageError):
        raise
    except Exception as e:              # a damaged or hostile file can raise anything
        raise UsageError(f"{path} is of an older edition of this code, or damaged, or no "
                         f"checkpoint of train.py ({type(e).__name__})") from e
    return model.to(device).eval(), checkpoint


@torch.no_grad()
def main(argv=None):
    s = Settings(**parse_args(Settings, __doc__, argv))
    check_numbers(s, dict(num_samples=1, max_new_tokens=1, top_k=1))
    s.device = find_device(s.device)
    model, checkpoint = load_checkpoint(s.out_dir, s.device)
    if s.prompt.startswith("FILE:"):
        s.prompt = read_text(s.prompt.removeprefix("FILE:"))

    task = checkpoint["settings"]["dataset"]
    if task in TASKS:
        known = {str(n): n for n in range(TASKS[task].shape[1])}
        prompt = (s.prompt or "1 0 1 1").split()
        if not set(prompt) <= set(known):
            raise UsageError(f"--prompt: {task} knows the inputs {', '.join(known)}")
        inputs = torch.tensor([known[word] for word in prompt], device=s.device)
        cache = model.init_cache(1)
        print(*(model.step(x, cache).argmax().item() for x in inputs.split(1)))
        return

    codec = Codec(checkpoint["codec"])
    line_break = codec.token_bytes.index(b"\n") if b"\n" in codec.token_bytes else 0
    prompt = torch.tensor([codec.encode(s.prompt) or [line_break]], device=s.device)
    generator = torch.Generator(s.device).manual_seed(s.seed)
    for n in range(s.num_samples):
        if n > 0:
            print("---------------")
        print(s.prompt, end="", flush=True)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")     # tokens can split a character
        start = time.perf_counter()
        for token in model.generate(prompt, s.max_new_tokens, s.temperature, s.top_k, generator):
            print(utf8.decode(codec.token_bytes[token.item()]), end="", flush=True)
        speed = s.max_new_tokens / (time.perf_counter() - start)
        print(f"\n({speed:,.0f} tokens per second)", file=sys.stderr)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)       # `| head` ends it without a traceback
    run_script(main)
