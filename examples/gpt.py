"""A small GPT on bytes, trained on the sources of Python's own standard library."""

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 256


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
        return x + self.feed(self.norm_feed(x))


class GPT(nn.Module):
    """Predicts each byte from those before it."""

    def __init__(self, width: int, num_layers: int, num_heads: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.embed = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("project.weight", "feed.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * num_layers) ** 0.5 if residual else 0.02)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return float32[B, T, 256] for tokens [B, T]; the output layer shares its weight with the embedding."""
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embed.weight)

    def forward(self, tokens: Tensor) -> dict[str, Tensor | int]:
        """Return the mean loss in nats a byte over tokens uint8[B, T + 1], and over how many bytes it is the mean."""
        tokens = tokens.long()
        logits, targets = self.logits(tokens[:, :-1]), tokens[:, 1:]
        loss = functional.cross_entropy(logits.reshape(-1, VOCABULARY), targets.reshape(-1))
        return {"loss": loss, "weight": targets.numel()}


def build(width: int = 128, num_layers: int = 4, num_heads: int = 4, context: int = 128) -> nn.Module:
    """Return the model that gpt.toml names."""
    return GPT(width, num_layers, num_heads, context)
