"""Checkpoints and devices."""
import os, zipfile
from pathlib import Path

import torch

from lrt import GPT, GPTConfig
from support.script import Unusable
from support.tokens import Codec

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
