"""This year's variant: other equations, in lrt.py and in all that follows from it.

    python course/variants.py                   lists the variants
    python course/variants.py NAME[,NAME] DIR   writes a variant, complete, to DIR, and tests it

A variant is a list of replacements for each file. The old text must be there exactly once. The
known numbers are made again by the variant's own second implementation. To add a variant, add an
entry to VARIANTS, and run the second command: it says what does not fit, and whether all
identities still hold.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {"lrt.py": "lrt.py", "test_lrt.py": "test_lrt.py", "course/second.py": "second.py",
         "course/right.py": "right.py", "course/STUDENT.md": "STUDENT.md"}     # path: short name

# {name: (what it is, {file: [(old, new), ...]})}
VARIANTS = {
    "": ("the model of the paper", {}),
    "keygates": ("gates act on keys only: v = W_v y + U_v m", {
        "lrt.py": [
            ("    k    = g_local k + g_mem U_k m_t;  v = g_local v + g_mem U_v m_t        "
             "              LRT",
             "    k    = g_local k + g_mem U_k m_t;  v = v + U_v m_t                      "
             "              LRT"),
            ("k, v = g_local * k, g_local * v", "k = g_local * k"),
            ("v = v + g_mem * self.heads(m_v)", "v = v + self.heads(m_v)"),
            ("Without them m = 0; the gate g_local acts all the same.",
             "Without them m = 0; the gate g_local acts on keys all the same."),
        ],
        "second.py": [("v = g_local * v + g_mem * m_v\n", "v = v + m_v\n")],
        "right.py": [("g_local * v + g_mem * self.split(m_v)", "v + self.split(m_v)"),
                     ("return q, g_local * k, g_local * v", "return q, g_local * k, v")],
        "STUDENT.md": [("v    = g_local W_v y + g_mem U_v m_t", "v    = W_v y + U_v m_t")],
    }),
    "softgates": ("the two gates of a head compete: 2 softmax, so their sum is 2", {
        "lrt.py": [
            ("    g_local, g_mem = 2 σ(W_g y)                                     LRT: two numbers "
             "per head",
             "    g_local, g_mem = 2 softmax(W_g y)                               LRT: two numbers "
             "per head,\n"
             f"{'LRT: whose sum is 2':>91}"),
            ("            gates = 2 * torch.sigmoid(self.w_g(y))                      "
             "# (B, n, 2H), in (0, 2)\n"
             "            g_local, g_mem = gates.transpose(1, 2)[..., None].chunk(2, dim=1)   "
             "# (B, H, n, 1)\n",
             "            gates = self.w_g(y).transpose(1, 2)[..., None].chunk(2, dim=1)      "
             "# (B, H, n, 1) each\n"
             "            g_local, g_mem = 2 * torch.stack(gates).softmax(dim=0)\n"),
        ],
        "second.py": [("g_local, g_mem = (2 / (1 + np.exp(-w[\"w_g\"] @ y))).reshape(2, H, 1)\n",
                       "g = np.exp(w[\"w_g\"] @ y).reshape(2, H, 1)\n"
                       "    g_local, g_mem = 2 * g / g.sum(axis=0)\n")],
        "right.py": [("g = (1 + torch.tanh(self.w_g(y) / 2))", "g = self.w_g(y)"),
                     ("g_local, g_mem = g[:, :H], g[:, H:]",
                      "g_mem = 2 * torch.sigmoid(g[:, H:] - g[:, :H])\n"
                      "        g_local = 2 - g_mem")],
        "STUDENT.md": [
            ("g_local, g_mem = 2 σ(W_g y)                two numbers per head",
             "g_local, g_mem = 2 softmax(W_g y)          two numbers per head, whose sum is 2"),
        ],
    }),
    "after": ("γ m is added after attention, before the MLP", {
        "lrt.py": [
            ("    x    = α_i x_{i-1} + β_i x_0 + γ_i m_t                          "
             "LRT: γ_i m_t\n",
             "    x    = α_i x_{i-1} + β_i x_0\n"),
            ("    x    = x + W_o attention(q, k and v of the last W positions)\n",
             "    x    = x + W_o attention(q, k and v of the last W positions)\n"
             "        x    = x + γ_i m_t                                              LRT\n"),
            ("    def forward(self, x, m_k, m_v, rope, mask, store):\n",
             "    def forward(self, x, m_k, m_v, inject, rope, mask, store):\n"
             '        """inject: 0 or (B, n, C), added between attention and MLP."""\n'),
            ("m_k, m_v, rope, mask, store))\n", "m_k, m_v, rope, mask, store)) + inject\n"),
            ("            if m is not None:\n"
             "                x = x + self.gamma[i] * m                                           "
             "    # LRT\n"
             "            x = block(x, *memory[i], rope,",
             "            inject = 0 if m is None else self.gamma[i] * m                          "
             "    # LRT\n"
             "            x = block(x, *memory[i], inject, rope,"),
        ],
        "second.py": [(" * x_0 + w[\"gamma\"][i] * m\n", " * x_0\n"),
                      ("        x = x + layer[\"w_2\"]",
                       "        x = x + w[\"gamma\"][i] * m if c.lrt else x\n"
                       "        x = x + layer[\"w_2\"]")],
        "right.py": [("x = x + self.gamma[i] * m", "inject = self.gamma[i] * m"),
                     ("m_k = m_v = None", "m_k, m_v, inject = None, None, 0"),
                     ("[i](x, m_k, m_v, ", "[i](x, m_k, m_v, inject, ")],
        "STUDENT.md": [
            ("    x    = α_i x_{i-1} + β_i x_0 + γ_i m_t", "    x    = α_i x_{i-1} + β_i x_0"),
            ("    x    = x + W_o attention(q, k, v)\n",
             "    x    = x + W_o attention(q, k, v) + γ_i m_t\n"),
        ],
    }),
    "twoback": ("half of the latent is passed on from the position before", {
        "lrt.py": [
            ("    latent_t = norm(x_i) of the layer i = memory_layer                  "
             "LRT: by default h_t\n",
             "    latent_t = the first C/2 numbers of norm(x_i) of the layer i = memory_layer,    "
             "     LRT\n"
             "               and then the first C/2 numbers of m_t, which are of latent_{t-1}\n"),
            ("                latent = norm(x)\n"
             "        h = latent if memory_layer == self.config.n_layer else norm(x)\n"
             "        return h, latent\n",
             "                own = norm(x).chunk(2, dim=-1)[0]\n"
             "        received = torch.zeros_like(own) if m is None else m.chunk(2, dim=-1)[0]\n"
             "        return norm(x), torch.cat([own, received], dim=-1)\n"),
        ],
        "second.py": [("            latent = norm(x)\n",
                       "            half = len(x) // 2\n"
                       "            received = c.lrt * m[:half]\n"
                       "            latent = np.concatenate([norm(x)[:half], received])\n")],
        "right.py": [
            ("                latent = norm(x)\n",
             "                latent = norm(x)\n"
             "                old = 0 * latent if m is None else m\n"
             "                latent = torch.cat([latent[..., :C // 2], old[..., :C // 2]], -1)\n"),
        ],
        "STUDENT.md": [
            ("latent_t = norm(x_i) of the layer i = memory_layer    by default h_t\n",
             "latent_t = the first C/2 numbers of norm(x_i) of the layer i = memory_layer,\n"
             "               and then the first C/2 numbers of m_t, which are of latent_{t-1}\n"),
        ],
    }),
}


def replaced(text, pairs, where):
    """Raises ValueError unless each old text is there exactly once."""
    for old, new in pairs:
        if text.count(old) != 1:
            raise ValueError(f"{where}: this is there {text.count(old)} times, not once:\n{old}")
        text = text.replace(old, new)
    return text


def edition(variant=""):
    """The texts of a variant {"lrt.py": ..., "right.py": ...}; "a,b" is both of them."""
    texts = {name: (ROOT / path).read_text(encoding="utf-8") for path, name in FILES.items()}
    for one in variant.split(","):
        if one not in VARIANTS:
            names = ", ".join(filter(None, VARIANTS))
            raise ValueError(f"there is no variant {one!r}, only {names}")
        for name, pairs in VARIANTS[one][1].items():
            texts[name] = replaced(texts[name], pairs, f"variant {one}, {name}")
    return texts


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")


def write_with_known_numbers(folder, variant=""):
    """Write lrt.py, test_lrt.py and known.npz of a variant into a folder; returns all texts."""
    texts = edition(variant)
    for name in ("lrt.py", "test_lrt.py"):
        write(folder / name, texts[name])
    if not variant:
        (folder / "known.npz").write_bytes((ROOT / "course" / "known.npz").read_bytes())
        return texts
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "course").mkdir()
        for name in ("lrt.py", "test_lrt.py", "course/second.py"):
            write(scratch / name, texts[Path(name).name])
        subprocess.run([sys.executable, scratch / "course" / "second.py"], check=True)
        (folder / "known.npz").write_bytes((scratch / "course" / "known.npz").read_bytes())
    return texts


def new_folder(name):
    """Raises ValueError unless it is new, or empty."""
    folder = Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there, and is not an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(argv):
    if len(argv) != 2:
        sys.exit(__doc__ + "\n" + "\n".join(f"{name:10} {what}" for name, (what, _)
                                            in VARIANTS.items() if name))
    variant, folder = argv[0], new_folder(argv[1])
    write_with_known_numbers(folder, variant)
    for name in ("train.py", "sample.py", "prepare_data.py"):
        write(folder / name, (ROOT / name).read_text(encoding="utf-8"))
    write(folder / "pytest.ini", "[pytest]\n")
    sys.exit(subprocess.run([sys.executable, "-m", "pytest", "-q", "test_lrt.py"], cwd=folder,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as e:
        sys.exit(f"error: {e}")
