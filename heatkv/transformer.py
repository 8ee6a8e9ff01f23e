"""The Infinity transformer: text and code features in, bit logits out. Read it from top to bottom.

It knows nothing of caches, schedules or sampling: self attention is the `attend` function that the caller passes,
so generation (one scale at a time, over a KV cache) and training (all scales at once) run the same code.
Architecture: FoundationVision/Infinity, infinity/models/{infinity,basic}.py. Letters in shape comments: R rows
(conditional, then unconditional), L tokens, C width, H heads, D head_dim.

Precision: the layers' matrices are in the model's dtype; everything else, and the residual stream, is float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from heatkv.config import ModelConfig
from heatkv.errors import HeatKVError
from heatkv.scales import Grid, ScaleSchedule

NUM_LEVEL_EMBEDDINGS = 15
_NORM_EPS = 1e-6
_MAX_LOG_SCALE = math.log(100)
_ROPE_BASE = 10000.0
_TOKENS_AT_ONCE, _ALL_ROWS_AT_ONCE = 1024, 16384
"""In a row, and in all rows. What a token needs between two attentions it needs alone. More at once are not faster, and
their intermediate results would be fetched from the system, and cleared by it, every time."""
_TEXT_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Of attention to the text. cuDNN, which PyTorch would choose on newer GPUs, plans for 50 ms for every number of tokens
that is new to the process: half of what the first image at 1M would take."""
# A prime: a block of 2048 x 2048 numbers would make the query, key and value weights of infinity-2b equal.
_BLOCK, _SHIFTS = 4_194_301, 1 << 16


class Attend(Protocol):
    """Self attention as the caller wants it: q, k, v [R, H, L, D] → [R, H, L, D]; softmax scale is 1."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotation of each token's query and key: cos and sin, [L, D / 2] float32."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, scales: ScaleSchedule, head_dim: int, device: torch.device | str = "cpu") -> Rope:
        """The rotations of all tokens of all scales, in sequence order."""
        tables = [_rope_angles(size, scales.rope_grid, head_dim) for size in scales.sizes]
        angles = torch.cat(tables).to(device)
        return cls(angles.cos(), angles.sin())

    def tokens(self, begin: int, end: int) -> Rope:
        return Rope(self.cos[begin:end], self.sin[begin:end])

    def split(self, size: int) -> list[Rope]:
        """In runs of `size` tokens."""
        return [Rope(cos, sin) for cos, sin in zip(self.cos.split(size), self.sin.split(size), strict=True)]

    def rotate(self, x: Tensor) -> Tensor:
        """x [R, H, L, D] with neighbouring channels (2p, 2p + 1) rotated as pairs."""
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((a * self.cos - b * self.sin, a * self.sin + b * self.cos), dim=-1).flatten(-2)


@dataclass(frozen=True, slots=True)
class TextContext:
    """Everything that the text contributes to one image, computed once."""

    pooled: Tensor
    """[R, C]: the start token and the source of all modulation."""
    modulation: Tensor
    """[R, 1, 6, C]: shared by all layers."""
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    """Per layer, the keys and values of cross attention: [R, H, text tokens, D]."""
    mask: Tensor | None
    """[R, 1, 1, text tokens], True where a row has a token; None when all rows are equally long."""

    @property
    def rows(self) -> int:
        return self.pooled.shape[0]


class Infinity(nn.Module):
    """The transformer of one ModelConfig."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check_shape(config)
        self.config = config
        width, text_width = config.width, config.text_width
        self.unconditional_text = nn.Parameter(torch.empty(config.text_maxlen, text_width))
        self.start_embed = nn.Parameter(torch.empty(1, 1, width))
        self.text_norm = nn.RMSNorm(text_width, eps=_NORM_EPS)
        self.text_pool = _TextPool(config)
        self.text_proj = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.level_embed = nn.Embedding(NUM_LEVEL_EMBEDDINGS, width)
        self.word_embed = nn.Linear(config.bits_per_token, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 2 * config.bits_per_token)

    def cast_layers(self, dtype: torch.dtype) -> Infinity:
        """Put the layers' matrices and biases in `dtype`; modulation, norms and attention scales stay float32."""
        for layer in self.layers:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.to(dtype)
        return self

    @property
    def kv_dtype(self) -> torch.dtype:
        """The dtype that keys and values are made, and stored, in."""
        return next(module.weight.dtype for module in self.layers.modules() if isinstance(module, nn.Linear))

    def encode_text(self, texts: Sequence[Tensor], negatives: Sequence[Tensor] | None, *, guided: bool) -> TextContext:
        """The context of prompts given as encoder features, each [tokens, text_width].

        With `guided`, unconditional rows follow: the negative prompts' features, or else as many rows of the learned
        unconditional text as the prompt has tokens (before the norm, as the official code does).
        """
        rows = [text.to(self.unconditional_text) for text in texts]
        if guided and negatives is None:
            rows += [self.unconditional_text[: len(text)] for text in texts]
        elif guided and negatives is not None:
            rows += [text.to(self.unconditional_text) for text in negatives]
        padded, mask = _pad([self.text_norm(row) for row in rows])
        with sdpa_kernel(_TEXT_BACKENDS):
            pooled = self.text_pool(padded, mask)
        projected = self.text_proj(padded)
        return TextContext(
            pooled,
            self.modulation(F.silu(pooled)).unflatten(-1, (1, 6, -1)),
            tuple(layer.cross.keys_values(projected) for layer in self.layers),  # type: ignore[union-attr, operator]
            mask,
        )

    def start_tokens(self, context: TextContext) -> Tensor:
        """Input of scale 0: [R, 1, C]."""
        return context.pooled[:, None] + self.start_embed

    def embed(self, features: Tensor) -> Tensor:
        """Input of a later scale: [R, L, C] from code features [R, L, bits]."""
        return self.word_embed(features)  # type: ignore[no-any-return]  # nn.Module.__call__ returns Any

    def trunk(
        self,
        x: Tensor,
        levels: Tensor,
        context: TextContext,
        rope: Rope,
        attend: Attend,
        *,
        guidance: Mapping[int, float] | None = None,
        before_layer: Callable[[int, Tensor], None] | None = None,
        after_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        """All layers: [R, L, C] → [R, L, C]. `levels` [L] is each token's scale.

        `guidance` maps a layer to the strength with which, after it, both guidance rows become their mix
        (cfg insertion layers). `before_layer` is called with a layer's input, `after_layer` when it has finished.
        """
        level_embed = self.level_embed(levels)
        layers_per_chunk = self.config.num_layers // self.config.num_chunks
        with sdpa_kernel(_TEXT_BACKENDS):
            for index, layer in enumerate(self.layers):
                if index == 0 or (self.config.level_embed_every_chunk and index % layers_per_chunk == 0):
                    x = x + level_embed
                if before_layer is not None:
                    before_layer(index, x)
                x = layer(x, index, context, rope, attend)
                if guidance and index in guidance:
                    x = _guide(x, guidance[index]).repeat(2, 1, 1)
                if after_layer is not None:
                    after_layer(index)
        return x

    def raw_queries(self, layer: int, x: Tensor, context: TextContext) -> Tensor:
        """Queries as projected only, without bias, norm, scale and RoPE: [R, H, n, D] of a layer's inputs [R, n, C].

        What ScaleKV (StargazerX0/ScaleKV) scores cached keys with.
        """
        return self.layers[layer].raw_queries(x, context)  # type: ignore[operator, no-any-return]  # a _Layer

    def bit_logits(self, x: Tensor, context: TextContext) -> Tensor:
        """[R, L, 2 * bits]: outputs 2j and 2j + 1 belong to bit j being 0 and 1."""
        scale, shift = self.head_modulation(F.silu(context.pooled))[:, None].chunk(2, dim=-1)
        return self.head(_layer_norm(x) * (1 + scale) + shift)  # type: ignore[no-any-return]  # as above


class _Layer(nn.Module):
    """Self attention, cross attention and feed-forward; the first and last modulated by the pooled text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 1, 6, config.width))
        self.attention = _SelfAttention(config)
        self.cross_norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.cross = _CrossAttention(config)
        self.ffn = _FeedForward(config)

    def raw_queries(self, x: Tensor, context: TextContext) -> Tensor:
        """See Infinity.raw_queries."""
        _, _, scale1, _, shift1, _ = (self.modulation + context.modulation).unbind(2)
        return self.attention.raw_queries(_layer_norm(x) * (1 + scale1) + shift1)

    def forward(self, x: Tensor, index: int, context: TextContext, rope: Rope, attend: Attend) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (self.modulation + context.modulation).unbind(2)
        rows, tokens, _ = x.shape
        at_once = tokens_at_once(rows)
        parts = x.split(at_once, dim=1)
        projected = (
            self.attention.project(_layer_norm(part) * (1 + scale1) + shift1, part_rope)
            for part, part_rope in zip(parts, rope.split(at_once), strict=True)
        )
        q, k, v = _joined(projected, tokens, dim=2)
        attended = attend(index, q, k, v).split(at_once, dim=2)
        del q, k, v  # the cache has copied what stays

        def done() -> Iterator[tuple[Tensor]]:
            for part, out in zip(parts, attended, strict=True):
                part = part + self.attention.output(out) * gamma1
                part = part + self.cross(self.cross_norm(part), context.keys_values[index], context.mask)
                yield (part + self.ffn(_layer_norm(part) * (1 + scale2) + shift2) * gamma2,)

        return _joined(done(), tokens, dim=1)[0]


class _SelfAttention(nn.Module):
    """Cosine attention: q and k have unit length, q times a learnt scale per head, RoPE after both."""

    k_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads = config.width, config.num_heads
        self.num_heads = heads
        self.log_scale = nn.Parameter(torch.empty(1, heads, 1, 1))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.register_buffer("k_bias", torch.empty(width))  # zeros in every checkpoint, yet part of it
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [R, H, L, D] each, in the layers' dtype."""
        weight = self.qkv.weight
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias)).to(weight.dtype)
        qkv = F.linear(x.to(weight.dtype), weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [R, H, L, D]
        q = rope.rotate(F.normalize(q.float(), dim=-1) * self.log_scale.clamp(max=_MAX_LOG_SCALE).exp()).to(v.dtype)
        k = rope.rotate(F.normalize(k.float(), dim=-1)).to(v.dtype)
        return q, k, v.contiguous()  # a view would keep all three alive as they were projected

    def raw_queries(self, x: Tensor) -> Tensor:
        """[R, H, n, D] of modulated inputs [R, n, C]: the projection alone."""
        weight = self.qkv.weight[: self.qkv.weight.shape[1]]
        queries: Tensor = F.linear(x.to(weight.dtype), weight).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return queries

    def output(self, attended: Tensor) -> Tensor:
        """[R, L, C] of what attention gave, [R, H, L, D]."""
        return self.proj(attended.transpose(1, 2).flatten(2)).float()  # type: ignore[no-any-return]  # as above


class _CrossAttention(nn.Module):
    """Every image token attends to its own row's text."""

    k_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.register_buffer("k_bias", torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """[R, H, text tokens, D] twice, from projected text [R, text tokens, C]."""
        weight = self.kv.weight
        kv = F.linear(text.to(weight.dtype), weight, torch.cat((self.k_bias, self.v_bias)).to(weight.dtype))
        keys, values = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        q = self.q(x.to(self.q.weight.dtype)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, *keys_values, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2)).float()  # type: ignore[no-any-return]  # as above


class _FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x.to(self.fc1.weight.dtype)), approximate="tanh")
        return self.fc2(hidden).float()  # type: ignore[no-any-return]  # as above


class _TextPool(nn.Module):
    """One learnt query per head pools the text into a vector [R, C]. Its heads are not the layers' heads."""

    k_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads = config.width, config.pool_heads
        self.query = nn.Parameter(torch.empty(1, heads, width // heads))
        self.kv = nn.Linear(config.text_width, 2 * width, bias=False)
        self.register_buffer("k_bias", torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        rows, heads = text.shape[0], self.query.shape[1]
        kv = F.linear(text, self.kv.weight, torch.cat((self.k_bias, self.v_bias)))
        keys, values = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.query[:, :, None].expand(rows, -1, -1, -1)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self.proj(out.flatten(1))  # type: ignore[no-any-return]  # as above


def initialise(model: nn.Module, *, seed: int) -> None:
    """Fill a model with random weights that run sanely, quickly even at billions of parameters.

    Matrices repeat one seeded block of normal numbers (std 0.02), which is enough where only time and memory
    matter; norms are 1, biases 0, attention scales the official start (ln 4).
    """
    block = torch.randn(_BLOCK + _SHIFTS, generator=torch.Generator().manual_seed(seed)) * 0.02
    blocks = {dtype: block.to(dtype) for dtype in {tensor.dtype for tensor in model.state_dict().values()}}
    with torch.no_grad():
        for index, (name, tensor) in enumerate([*model.named_parameters(), *model.named_buffers()]):
            if name.endswith("log_scale"):
                tensor.fill_(math.log(4))
            elif "norm" in name and name.endswith("weight"):
                tensor.fill_(1)
            elif name.endswith("bias"):
                tensor.zero_()
            else:
                # Another start in the block for each tensor, so that no two layers are equal.
                _repeat(tensor, blocks[tensor.dtype][7919 * index % _SHIFTS :][:_BLOCK])


def _repeat(tensor: Tensor, numbers: Tensor) -> None:
    for part in tensor.view(-1).split(len(numbers)):
        part.copy_(numbers[: len(part)])


def _check_shape(config: ModelConfig) -> None:
    """Raises HeatKVError for numbers that make no Infinity."""
    for what, whole, parts in (
        ("width, in heads of whole RoPE quadruples", config.width, 4 * config.num_heads),
        ("width, in text pooling heads", config.width, config.pool_heads),
        ("layers, in chunks", config.num_layers, config.num_chunks),
    ):
        if whole % parts:
            raise HeatKVError(f"{config.name}: {what}: {whole} is not a multiple of {parts}")


def _layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_NORM_EPS)


def tokens_at_once(rows: int) -> int:
    """Tokens of a row that go through a layer at a time, but for attention."""
    return max(1, min(_TOKENS_AT_ONCE, _ALL_ROWS_AT_ONCE // rows))


def _joined(parts: Iterable[tuple[Tensor, ...]], tokens: int, *, dim: int) -> tuple[Tensor, ...]:
    """Several tensors of so many tokens, from their parts; each goes to its place as it comes, and is let go."""
    wholes: tuple[Tensor, ...] = ()
    begin = 0
    for part in parts:
        length = part[0].shape[dim]
        if length == tokens:
            return part
        wholes = wholes or tuple(one.new_empty(*one.shape[:dim], tokens, *one.shape[dim + 1 :]) for one in part)
        for whole, one in zip(wholes, part, strict=True):
            whole.narrow(dim, begin, length).copy_(one)
        begin += length
        del part, one  # else they were alive while the next part is made
    return wholes


def _guide(x: Tensor, strength: float) -> Tensor:
    conditional, unconditional = x.chunk(2)
    return strength * conditional + (1 - strength) * unconditional


def _pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Rows [tokens, width] of any lengths as [R, longest, width], and where the tokens are."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    if len({len(row) for row in rows}) == 1:
        return padded, None
    return padded, (torch.arange(padded.shape[1], device=padded.device) < lengths[:, None])[:, None, None]


def rope_positions(size: Grid, rope_grid: Grid) -> tuple[Tensor, Tensor]:
    """Row and column positions of a grid's sides, in cells of the rope grid: [height], [width] int64.

    Multiplied in float32 and rounded half to even, as the official table is: 516 exact halves, and the 54x18 grid
    of aspect 3.0, come out differently otherwise.
    """
    rows = torch.arange(size[0], dtype=torch.float32) * (rope_grid[0] / size[0])
    columns = torch.arange(size[1], dtype=torch.float32) * (rope_grid[1] / size[1])
    return rows.round().long(), columns.round().long()


def _rope_angles(size: Grid, rope_grid: Grid, head_dim: int) -> Tensor:
    """[height * width, head_dim / 2]: the first half of the pairs turn with the row, the rest with the column."""
    quarter = head_dim // 4
    exponents = torch.arange(0, 2 * quarter, 2, dtype=torch.float32)[:quarter] / (head_dim // 2)
    frequencies = 1.0 / _ROPE_BASE**exponents
    rows, columns = rope_positions(size, rope_grid)
    by_row = torch.outer(rows.float(), frequencies)[:, None].expand(-1, size[1], -1)
    by_column = torch.outer(columns.float(), frequencies)[None].expand(size[0], -1, -1)
    return torch.cat((by_row, by_column), dim=-1).flatten(0, 1)
