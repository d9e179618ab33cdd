"""A small causal transformer with pre-normalisation (Radford et al., 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..given import refuse_widths


class Block(nn.Module):
    """Self-attention over the past and a GELU layer of four times the width, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) to the same shape."""
        batch, length, width = x.shape
        heads = self.queries_keys_values(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        seen = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = x + nn.functional.dropout(self.feed_forward(x), dropout)
        return out


class GPT(nn.Module):
    """Causal transformer from token ids (N, L), L <= context, to logits (N, L, vocabulary).

    The output layer is the token embedding's own matrix.

    Args:
        vocabulary: number of token ids.
        context: longest input.
        layers: number of attention blocks.
        width: size of a token's vector; `heads` divides it.
        heads: attention heads in a block.
        dropout: probability, on attention weights and feed-forward outputs.

    Raises:
        ValueError: a size is not 1 or more, or `heads` does not divide `width`.

    >>> GPT(128, 16, layers=1, width=8, heads=2)(torch.zeros(2, 16, dtype=torch.long)).shape
    torch.Size([2, 16, 128])
    """

    def __init__(
        self, vocabulary: int, context: int, layers: int, width: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        refuse_widths(vocabulary=vocabulary, context=context, layers=layers, width=width, heads=heads)
        if width % heads:
            raise ValueError(f"model.heads={heads} does not divide model.width={width}: use a divisor of the width.")
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        blocks = [Block(width, heads, dropout) for _ in range(layers)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self._initialise(blocks)

    def _initialise(self, blocks: list[Block]) -> None:
        # GPT-2's: 0.02 everywhere, less by sqrt(2 * layers) where a layer adds to the residual stream.
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        for block in blocks:
            residual = {block.mix, block.feed_forward[-1]}
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    std = 0.02 / math.sqrt(2 * len(blocks)) if layer in residual else 0.02
                    nn.init.normal_(layer.weight, std=std)
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, L, vocabulary) of the token after each position."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return nn.functional.linear(self.norm(self.blocks(x)), self.tokens.weight)
