"""The line of a chart that is not measured: the worst-case scaling of arXiv 2503.14881, its constant chosen by us."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvscope.league.settings import Settings

LABEL = "worst-case scaling reference, constant unknown (drawn with c = 1 bit per coordinate)"

CAVEATS = (
    "arXiv 2503.14881 shows that attention outputs over a VAR's scales need, in the worst case, memory that grows as "
    "n²d bits (n: side of the last token map, d: head dimension), where d is at least about log n.",
    "It is asymptotic, of adversarial inputs, counts bits for one attention instance, and leaves the constant open.",
    "It says nothing of image quality; a method left of the line contradicts nothing.",
)


def reference_bytes(settings: Settings) -> float:
    """n²d bits over every layer, head and batch row, in bytes."""
    config = settings.config
    bits = settings.scales.tokens[-1] * config.head_dim
    return bits / 8 * config.num_layers * config.num_heads * settings.rows
