"""What policies need to know of a model, measured in one unpruned run per prompt: heatkv.measurements names it.

S-CAS needs attention mass alone, as tools/compute_scas.py of the reference measures it. Only the conditional row
counts, but for what is named `uncond`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from heatkv.attention import choose_path
from heatkv.generate import Run, Sampling
from heatkv.kernels.blind import blind_error
from heatkv.kernels.statistics import column_variance, selectivity, similarity
from heatkv.measurements import AXES, measurement_names
from heatkv.policies.full import FullPolicy
from heatkv.probe import Capture, NullProbe
from heatkv.scas import ScasAccumulator
from heatkv.visible import Visible

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from heatkv.scales import ScaleSchedule
    from heatkv.text_encoder import TextEncoder
    from heatkv.transformer import Infinity


def measure_prompt(
    model: Infinity,
    encoder: TextEncoder,
    scales: ScaleSchedule,
    prompt: str,
    *,
    seed: int,
    sink_scales: int,
    sampling: Sampling | None = None,
) -> ScasAccumulator:
    """The mass of one prompt's full-cache run; merge the accumulators of many and ask for their scores."""
    config = model.config
    accumulator = ScasAccumulator(config.num_layers, config.num_heads, scales.num_scales, sink_scales)
    (text,) = encoder.encode([prompt])
    measured = measure(model, text, scales, seed=seed, sampling=sampling, only_mass=True)
    accumulator.add_prompt(measured["attention_mass"])
    return accumulator


@torch.inference_mode()
def measure(
    model: Infinity,
    text: Tensor,
    scales: ScaleSchedule,
    *,
    seed: int,
    sampling: Sampling | None = None,
    only_mass: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """Every measurement of one prompt, by its name in AXES, NaN where there is none. `text`: [tokens, text_width].

    `only_mass`: only attention_mass, which is what S-CAS takes, in less time. Without guidance there is nothing of the
    unconditional row.
    """
    sampling = sampling or Sampling()
    sampling.check(scales.num_scales, model.config.num_layers)
    context = model.encode_text([text], None, guided=sampling.guided)
    path = choose_path(context.pooled.device, dtype=model.kv_dtype, head_dim=model.config.head_dim)
    schedule = FullPolicy().plan(model.config, scales)
    run = _MeasuredRun(model, context, scales, schedule, sampling, path, _MassProbe())
    run.tables = _tables(run, measurement_names(guided=sampling.guided, only_mass=only_mass))
    try:
        run.all_scales(1, seed, None)
        return {name: table.float().cpu().numpy() for name, table in run.tables.items()}
    finally:
        run.close()


class _MeasuredRun(Run):
    """A full-cache run of one prompt that fills `tables` as it goes."""

    tables: dict[str, Tensor]

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visible = self.cache.visible(layer, query_scale=self.query_scale, keys=k, values=v)
        out = super()._attend(layer, q, k, v)
        assert self.step_attended is not None
        assert self.step_attended.mass is not None
        self.tables["attention_mass"][self.query_scale, layer] = self.step_attended.mass
        if "output_error" in self.tables:
            self._measure(layer, q, *_whole(visible))
        return out

    def _measure(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> None:
        """`keys`, `values`: [R, H, T, D] of all scales so far."""
        scale, tables = self.query_scale, self.tables
        self._measure_output(layer, q, keys, values)
        if scale > 0:
            begin = self.scales.offsets[scale - 1]
            tables["selectivity"][scale, layer] = selectivity(q[0], keys[0], num_current=q.shape[2])
            tables["kv_similarity"][layer, scale] = self._similarity(keys[0, :, begin:], values[0, :, begin:])
        if scale == self.scales.num_scales - 1:
            tables["column_variance"][layer] = column_variance(q[0], keys[0])

    def _measure_output(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> None:
        scale = self.query_scale
        projection: Tensor = self.model.layers[layer].attention.proj.weight  # type: ignore[assignment, union-attr]
        error, mass = blind_error(q, keys, values, self.scales.tokens[: scale + 1], projection)
        self.tables["output_error"][scale, layer, :, :scale] = error[0]
        if self.sampling.guided:
            self.tables["output_error_uncond"][scale, layer, :, :scale] = error[1]
            self.tables["attention_mass_uncond"][scale, layer, :, : scale + 1] = mass[1]

    def _similarity(self, keys: Tensor, values: Tensor) -> Tensor:
        """Of this scale with the one before: both, [H, tokens before + tokens, D]. The mean of keys' and values'."""
        grid_before, grid = self.scales.sizes[self.query_scale - 1 : self.query_scale + 1]
        parts = [self.scales.tokens[self.query_scale - 1], self.scales.tokens[self.query_scale]]
        pairs = [both.split(parts, dim=1) for both in (keys, values)]
        cosines = [similarity(here, before, grid=grid, grid_before=grid_before) for before, here in pairs]
        return torch.stack(cosines).mean()


class _MassProbe(NullProbe):
    """Has every step's attention mass measured."""

    capture = Capture(mass=True, bit_exact=False)


def _tables(run: Run, names: tuple[str, ...]) -> dict[str, Tensor]:
    config, num_scales = run.model.config, run.scales.num_scales
    sizes = {
        "query_scale": num_scales,
        "layer": config.num_layers,
        "head": config.num_heads,
        "source_scale": num_scales,
    }
    shapes = {name: [sizes[axis] for axis in AXES[name]] for name in names}
    return {name: torch.full(shape, torch.nan, device=run.device) for name, shape in shapes.items()}


def _whole(visible: Visible) -> tuple[Tensor, Tensor]:
    """Keys and values [R, H, T, D] of heads that all have stored equally many tokens, the current scale last."""
    stored = visible.pool.read(np.stack(visible.slots))
    keys, values = (torch.cat(pair, dim=2) for pair in zip(stored, (visible.keys, visible.values), strict=True))
    return keys, values
