"""Sample text from a checkpoint:  python sample.py --out_dir=out --prompt="ROMEO:"
With a model of a task, its answers:  python sample.py --out_dir=out --prompt="1 0 1 1"
"""
import sys
import time
import zipfile
from pathlib import Path

import torch

from lrt import GPT, GPTConfig
from prepare_data import MAX_SEED, Codec, Parser, check, fail, read_text, script


def find_device(name=""):
    """The device of that name, or the best one here: cuda, mps, cpu."""
    if not name:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        fail(f"--device={name} cannot be used here: {str(e).splitlines()[0]}")


def load_checkpoint(path, device):
    """(model, codec, checkpoint) from a file that train.py wrote. Runs no code from it: weights_only. Finds any damage
    to its contents, as a checkpoint is a zip archive with checksums."""
    try:
        with open(path, "rb") as f, zipfile.ZipFile(f) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged}")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        weights = {name.replace("module.", "").replace("_orig_mod.", ""): w for name, w in checkpoint["model"].items()}
        config, codec = GPTConfig(**checkpoint["config"]), Codec(checkpoint["meta"]["codec"])
        if (config.vocab_size, config.n_embd, config.n_layer) != (*weights["embed.weight"].shape, len(weights["alpha"])):
            raise ValueError("the weights are not those of its config")
        model = GPT(config)
        model.load_state_dict(weights)
        checkpoint["model"] = weights
        return model.to(device), codec, checkpoint
    except FileNotFoundError:
        fail(f"no checkpoint {path}; this makes one: python train.py --lrt=1 --out_dir={Path(path).parent}")
    except Exception as e:      # a damaged or hostile file can raise anything at all
        fail(f"{path} is not a checkpoint of this project, or damaged ({type(e).__name__}: {str(e).splitlines()[0]:.150})")


def hold_latent_at_zero(model):
    """What remains without the memory: the weights that let it in become zero."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "gamma" or name.startswith(("u_k.", "u_v.")):
                p.zero_()


def stream(model, codec, prompt, num_samples, max_new_tokens, temperature, top_k, generator, stepwise=False):
    """Print num_samples continuations of the prompt's tokens, decoded together: the first as it comes, the others
    after it. Returns a line about time and prefill."""
    idx = torch.tensor([prompt] * num_samples, device=model.embed.weight.device)
    cache = model.init_cache(num_samples)
    decoders = [codec.decoder() for _ in range(num_samples)]
    texts = ["".join(map(decode, prompt)) for decode in decoders]
    start = time.perf_counter()
    if stepwise:
        for t in range(idx.size(1) - 1):
            model.step(idx[:, t], cache)
        idx = idx[:, -1:]
    first = None
    for token in model.generate(idx, max_new_tokens, temperature, top_k, generator, cache):
        if first is None:                       # the prompt has been read
            first = time.perf_counter()
            print(texts[0], end="")
        pieces = [decode(t) for decode, t in zip(decoders, token.tolist())]
        texts = [text + piece for text, piece in zip(texts, pieces)]
        print(pieces[0], end="", flush=True)
    end = time.perf_counter()
    print()
    for text in texts[1:]:
        print(f"---------------\n{text}")
    how = "stepwise" if stepwise else f"{cache.sweeps} sweeps, " + (f"last change {cache.residual:.0e}" if cache.residual else "exact")
    return (f"prompt of {len(prompt):,} tokens in {1000 * (first - start):.0f} ms ({how}), then "
            f"{num_samples * (max_new_tokens - 1) / max(end - first, 1e-9):,.0f} tokens per second")


@script
def main(argv):
    parser = Parser(__doc__)
    parser.add_argument("--out_dir", default="out", help="folder with best.pt or last.pt (default: out)")
    parser.add_argument("--prompt", default="\n", help="text to go on from, or FILE:path (default: a line break)")
    parser.add_argument("--num_samples", type=int, default=1, help="how many texts, decoded together (default: 1)")
    parser.add_argument("--max_new_tokens", type=int, default=500, help="length of each (default: 500)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (default: 0.8)")
    parser.add_argument("--top_k", type=int, default=200, help="only from the k likeliest tokens (default: 200)")
    parser.add_argument("--prefill", default="parallel", help="parallel or stepwise: how the prompt is read (default: parallel)")
    parser.add_argument("--latent", type=int, default=1, help="0: hold the memory at zero, to see what it is worth (default: 1)")
    parser.add_argument("--seed", type=int, default=1337, help="same seed, same text (default: 1337)")
    parser.add_argument("--device", default="", help="cpu, cuda, mps ... (default: the best one here)")
    args = parser.parse_args(argv)
    check(args, num_samples=(1, 1000), max_new_tokens=(1, 10 ** 12), temperature=(0, 1000), top_k=(1, 10 ** 9), seed=(0, MAX_SEED),
          prefill=["parallel", "stepwise"], latent=[0, 1])
    device = find_device(args.device)
    path = Path(args.out_dir).expanduser() / "best.pt"
    model, codec, checkpoint = load_checkpoint(path if path.exists() else path.with_name("last.pt"), device)
    try:
        prompt = codec.encode(read_text(args.prompt[5:]) if args.prompt.startswith("FILE:") else args.prompt)
    except ValueError as e:
        fail(f"--prompt: {e}")
    if not prompt:
        fail("--prompt is empty; give at least one character, or for a model of a task one number")
    if not args.latent:
        hold_latent_at_zero(model)
    if codec.kind == "numbers":                     # a task: what is asked for after each input, not a text that goes on
        cache = model.eval().init_cache(1)
        print(codec.decode([model.step(torch.tensor([token], device=device), cache).argmax().item() for token in prompt]).strip())
        return
    line = stream(model.eval(), codec, prompt, args.num_samples, args.max_new_tokens, args.temperature, args.top_k,
                  torch.Generator(device).manual_seed(args.seed), args.prefill == "stepwise")
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
