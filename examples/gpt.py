"""A small GPT on bytes, trained on the sources of Python's own standard library.

hpcvol train gpt.toml -n 2         trains it (`make train` does, in the project's folder)
python gpt.py runs/gpt             tells how well it came out, and lets it write
"""

import gzip
import math
import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

NUM_BYTES = 256  # the vocabulary: every byte is a token
NOT_SOURCES = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


def standard_library() -> list[Path]:
    """Return the source files of the standard library of this Python, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(file for file in root.rglob("*.py") if not NOT_SOURCES & set(file.relative_to(root).parts))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a feed-forward layer, each added to what came in."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.query_key_value(self.norm_attention(x)).view(batch, length, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        fed: Tensor = self.feed(self.norm_feed(x))
        return x + fed


class GPT(nn.Module):
    """Predicts each byte from those before it.

    Bytes are small tokens, so each position sees, besides its own byte, the `num_past` before it: sums of embeddings
    that tell which word one is in. They cost no time, and save the first layers the learning of it.
    """

    def __init__(self, width: int, num_layers: int, num_heads: int, context: int, num_past: int) -> None:
        super().__init__()
        self.context = context
        self.embed = nn.Embedding(NUM_BYTES, width)
        self.embed_past = nn.ModuleList(nn.Embedding(NUM_BYTES, width) for _ in range(num_past))
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends_block = name.endswith(("project.weight", "feed.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * num_layers) if ends_block else 0.02)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return float32[B, T, 256] for int64[B, T]; the output layer has the weight of the embedding."""
        length = tokens.shape[1]
        x = self.embed(tokens) + self.position(torch.arange(length, device=tokens.device))
        for distance, embed in enumerate(self.embed_past, start=1):
            # Moved by `distance` along the sequence: the first positions have no such byte.
            x = x + functional.pad(embed(tokens), (0, 0, distance, 0))[:, :length]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embed.weight)

    def forward(self, tokens: Tensor) -> dict[str, Tensor | int]:
        """Return the mean loss in nats a byte over uint8[B, T + 1], and the number of bytes it was taken over."""
        tokens = tokens.long()
        logits, targets = self.logits(tokens[:, :-1]), tokens[:, 1:]
        loss = functional.cross_entropy(logits.reshape(-1, NUM_BYTES), targets.reshape(-1))
        return {"loss": loss, "weight": targets.numel()}

    @torch.no_grad()
    def write(self, prompt: bytes, num_bytes: int, temperature: float = 0.7, seed: int = 0) -> bytes:
        """Go on from `prompt` for `num_bytes` bytes, drawn at random; below 1, `temperature` prefers likely ones."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.tensor(list(prompt)).unsqueeze(0)
        for _ in range(num_bytes):
            likely = torch.softmax(self.logits(tokens[:, -self.context :])[0, -1] / temperature, dim=0)
            tokens = torch.cat([tokens, torch.multinomial(likely, 1, generator=generator).unsqueeze(0)], dim=1)
        return bytes(tokens[0].tolist())


def build(width: int = 128, num_layers: int = 3, num_heads: int = 4, context: int = 256, num_past: int = 5) -> GPT:
    """Return the model that the configuration names."""
    return GPT(width, num_layers, num_heads, context, num_past)


def unigram_bits(text: NDArray[np.uint8]) -> float:
    """Return the entropy of single bytes, uint8[n], in bits a byte: what a model reaches that knows no context."""
    counts = np.bincount(text, minlength=NUM_BYTES)
    shares = counts[counts > 0] / text.size
    return float(-(shares * np.log2(shares)).sum())


def gzip_bits(text: NDArray[np.uint8]) -> float:
    """Return the size of the compressed text, uint8[n], in bits a byte."""
    return 8 * len(gzip.compress(text.tobytes(), 9)) / text.size


def report(run_dir: Path) -> str:
    """Return how the model of a complete run compares on the validation text, and something it wrote."""
    import json

    from safetensors.torch import load_model

    import hpcvol

    config = hpcvol.load_config(run_dir / "config.toml")
    summary = json.loads((run_dir / "summary.json").read_text())
    validation = hpcvol.Dataset.open(config.data.path).split(config.data.val_split)
    # The first byte of a sequence is given, not predicted.
    text = validation.take(np.arange(len(validation)))["tokens"][:, 1:].reshape(-1)
    model = build(**config.model.args)
    last = max((run_dir / "checkpoints").glob("step-*"))
    load_model(model, last / "model.safetensors")
    sample = model.eval().write(b"def ", 400).decode(errors="replace")
    return (
        f"validation text, {text.size} bytes, in bits a byte:\n"
        f"  {unigram_bits(text):.3f}  entropy of its single bytes\n"
        f"  {gzip_bits(text):.3f}  gzip -9\n"
        f"  {summary['val_loss'] / math.log(2):.3f}  this model, after {summary['steps']} steps\n"
        f"it writes:\n{sample}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)  # one byte at a time is too little for two to share
    print(report(Path(sys.argv[1])))
