"""This year's variant: other equations, in lrt.py and in all that follows from it.

A variant is a list of replacements for each file. The old text must be there exactly once. The
known numbers are made again by the variant's own second implementation. To add a variant, add an
entry to VARIANTS, and see "To add a variant" in INSTRUCTOR.md.
"""
import subprocess
import sys
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
            ("                latent = norm(x)\n",
             "                latent = norm(x)\n"
             "                received = torch.zeros_like(x) if m is None else m\n"
             "                halves = latent.chunk(2, -1)[0], received.chunk(2, -1)[0]\n"
             "                latent = torch.cat(halves, dim=-1)\n"),
            ("        h = latent if memory_layer == L else norm(x)\n        return h, latent",
             "        return norm(x), latent"),
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
    """The texts of a variant {"lrt.py": ..., "right.py": ...}; "a,b" is both of them. Raises
    ValueError."""
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


def write_variant(folder, variant=""):
    """Write lrt.py, test_lrt.py and known.npz of a variant into a folder; returns all texts."""
    texts = edition(variant)
    for name in ("lrt.py", "test_lrt.py", "second.py"):
        write(folder / name, texts[name])
    subprocess.run([sys.executable, folder / "second.py"], check=True)      # writes known.npz
    (folder / "second.py").unlink()
    return texts
