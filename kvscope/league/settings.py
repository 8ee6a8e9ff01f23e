"""Settings: what a league measures, as plain data. Two leagues with equal settings are one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from heatkv.codecs import MODEL
from heatkv.config import ModelConfig, model_config
from heatkv.scales import ScaleSchedule
from kvscope.errors import UsageError
from kvscope.job import DTYPE_BYTES, Job
from kvscope.league.adapter import peak_bytes
from kvscope.units import parse_bytes

if TYPE_CHECKING:
    from kvscope.plan import Plan

REFERENCE_DTYPE = "bfloat16"
"""A budget's fraction is of the full history in this dtype, whatever the league runs in."""
FULL = "full"


@dataclass(frozen=True, slots=True)
class Settings:
    """Policies × targets × prompts × seeds, and how each run is made."""

    policies: tuple[str, ...]
    """As `kvscope run --policy` takes them, then / and sink scales, then @ and a KV codec, as in heatkv/1@int4; policy
    full is measured once, as the reference."""
    targets: tuple[int, ...]
    """Bytes of keys and values, the most that may be held after any step."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    model: str
    cfg: float
    tau: float
    weights: str | None = None
    random_weights: bool = False
    resolution: str | None = None
    aspect: float = 1.0
    sink_scales: int | None = None
    orders: str | None = None
    orders_sha256: str | None = None
    """Of that file's content: another calibration under the same name is another league."""
    dtype: str = REFERENCE_DTYPE
    device: str = "cpu"
    metrics: tuple[tuple[str, str], ...] = ()
    """(name of perceptual.METRICS, where its weights are)."""

    def __post_init__(self) -> None:
        for name in ("policies", "prompts", "seeds"):
            if not getattr(self, name):
                raise UsageError(f"no {name}; give at least one")
        for name in ("policies", "targets", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UsageError(f"{name} are given twice: {' '.join(map(str, values))}; give each once")
        if set(self.policies) != {FULL} and not self.targets:
            raise UsageError("no budgets; give --budgets, as in 20% or 40MB")

    @property
    def config(self) -> ModelConfig:
        return model_config(self.model)

    @property
    def scales(self) -> ScaleSchedule:
        return self.config.schedule_for(self.resolution, aspect=self.aspect)

    @property
    def rows(self) -> int:
        """Batch rows that hold keys and values: 2 with guidance."""
        return 1 if self.cfg == 1 else 2

    @property
    def bytes_per_token(self) -> int:
        """Of one head-token's key and value in all rows, in the dtype of the runs."""
        return self.config.kv_bytes_per_token(dtype_bytes=DTYPE_BYTES[self.dtype], rows=self.rows)

    @property
    def history_bytes(self) -> int:
        """The full history in bfloat16: what a budget's fraction is of."""
        return self.config.history_bytes(self.scales, dtype_bytes=DTYPE_BYTES[REFERENCE_DTYPE], rows=self.rows)

    def peak_bytes(self, plan: Plan) -> int:
        """What a plan's pools hold at most, in the dtype and rows of the runs."""
        return peak_bytes(plan, rows=self.rows, dtype_bytes=DTYPE_BYTES[self.dtype])

    def job(self, policy: str, budget: float | None, *, prompt: str = "", seed: int = 0) -> Job:
        """One run, as `kvscope run` would make it."""
        name, sinks, codec = entrant_parts(policy)
        return Job(
            prompt=prompt,
            model=self.model,
            policy=name,
            kv_codec=codec,
            seed=seed,
            weights=self.weights,
            random_weights=self.random_weights,
            resolution=self.resolution,
            aspect=self.aspect,
            budget=budget,
            orders=None if policy == FULL else self.orders,
            sink_scales=self.sink_scales if sinks is None else sinks,
            cfg=self.cfg,
            tau=self.tau,
            dtype=self.dtype,
            device=self.device,
        )

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:  # Any: a JSON object
        """Raises TypeError or KeyError for a record of another kind."""
        lists = ("policies", "targets", "prompts", "seeds")
        metrics = tuple((str(name), str(where)) for name, where in record["metrics"])
        return cls(**(record | {name: tuple(record[name]) for name in lists} | {"metrics": metrics}))


def entrant_parts(text: str) -> tuple[str, int | None, str]:
    """Policy, sink scales and KV codec of an entrant such as `heatkv/1@int4`.

    Without /, the sink scales are the league's, or the policy's own; without @, all is in the model's dtype. Raises
    UsageError where what follows / is no number.
    """
    policy, _, codec = text.partition("@")
    name, slash, sinks = policy.partition("/")
    if slash and not sinks.isdigit():
        raise UsageError(f"entrant {text!r}: {sinks!r} is no number of sink scales; write it as in heatkv/1@int4")
    return name, int(sinks) if slash else None, codec or MODEL


def target_bytes(text: str, history_bytes: int) -> int:
    """The bytes that a budget such as `20%`, `0.2`, `40MB` or `321KiB` means. Raises ValueError for any other."""
    fraction = _fraction(text)
    wanted = parse_bytes(text) if fraction is None else round(fraction * history_bytes)
    if wanted < 1:
        raise ValueError(f"{text!r} is no budget; expected one like 20% or 40MB, above 0")
    return wanted


def _fraction(text: str) -> float | None:
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    if text.endswith("%") and value > 1:
        raise ValueError(f"{text!r} is more than the whole history; expected at most 100%")
    return value if value <= 1 else None
