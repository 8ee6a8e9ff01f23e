"""The CUDA forms of ragged attention equal the plain twin, wait for nothing, and measure without changing a bit."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from heatkv.kernels import dense, ragged, varlen
from heatkv.kernels.plain import ragged_attention_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    Case = Any  # RaggedCase, of a module that is loaded from its path
    Attention = Callable[..., tuple[Tensor, Tensor, Tensor | None]]

# What Triton and CUDA's libraries warn of is not what is tested here.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

FORMS = {
    "triton": (ragged.unavailable, ragged.ragged_attention),
    "triton after cuDNN": (
        ragged.unavailable,
        functools.partial(ragged.ragged_attention, current=dense.cudnn_attention),
    ),
    "varlen": (varlen.unavailable, varlen.ragged_attention_varlen),
}
KEPT = ([0, 1, 2, 3, 4, 5, 6], [0], [], [2, 6], [0, 1, 2], [6], [0, 5], [1])
SIZES = (1, 4, 16, 36, 64, 144, 1024)
HEAD_DIM = 128


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Attention:
    unavailable, attention = FORMS[request.param]
    reason = unavailable(torch.device("cuda"), dtype=torch.bfloat16, head_dim=HEAD_DIM)
    if reason is not None:
        pytest.skip(f"{request.param} {reason}")
    return attention


@pytest.fixture(params=[1, 36, 1000, 1024])
def case(request: pytest.FixtureRequest, cases: ModuleType) -> Case:
    """Float64 inputs with scores of a spread of 1 and values below 1, two rows of which the first is measured."""
    made = cases.ragged_case(KEPT, queries=request.param, current=request.param, head_dim=HEAD_DIM, sizes=SIZES)
    made.tensors["q"] /= HEAD_DIM**0.5
    for name in ("values", "pool_values"):
        made.tensors[name] /= 5
    return made


def test_bfloat16_results_are_those_of_the_plain_twin(form: Attention, case: Case) -> None:
    rounded = case.to(torch.bfloat16, "cuda")

    out, lse, mass = form(**rounded.arguments)

    want_out, want_lse, want_mass = ragged_attention_plain(**rounded.to(torch.float64, "cuda").arguments)
    # Weights and output are rounded to 8 bits; lse and mass are float32 throughout.
    torch.testing.assert_close(out.double(), want_out, rtol=0, atol=4e-3)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=1e-5)
    assert mass is not None
    torch.testing.assert_close(mass.double(), want_mass, rtol=0, atol=1e-5)
    torch.testing.assert_close(mass.sum(dim=-1), torch.ones_like(mass[..., 0]), rtol=0, atol=1e-5)


def test_float32_results_are_those_of_the_plain_twin(case: Case) -> None:
    reason = ragged.unavailable(torch.device("cuda"), dtype=torch.float32, head_dim=HEAD_DIM)
    if reason is not None:
        pytest.skip(f"triton {reason}")
    wide = case.to(torch.float32, "cuda")

    results = ragged.ragged_attention(**wide.arguments)

    want = ragged_attention_plain(**wide.to(torch.float64, "cuda").arguments)
    for have, exact, tolerance in zip(results, want, (1e-5, 1e-5, 1e-6), strict=True):
        assert have is not None
        torch.testing.assert_close(have.double(), exact, rtol=0, atol=tolerance)


def test_capture_does_not_change_a_bit_of_the_output(form: Attention, case: Case) -> None:
    rounded = case.to(torch.bfloat16, "cuda")

    out, lse, mass = form(**rounded.capturing(2).arguments)
    plain_out, plain_lse, nothing = form(**rounded.capturing(0).arguments)

    assert torch.equal(out, plain_out)
    assert torch.equal(lse, plain_lse)
    assert mass is not None
    assert nothing is None


def test_the_same_input_gives_the_same_bits(form: Attention, case: Case) -> None:
    rounded = case.to(torch.bfloat16, "cuda")

    for first, again in zip(form(**rounded.arguments), form(**rounded.arguments), strict=True):
        assert torch.equal(first, again)


def test_a_step_without_capture_waits_for_nothing(form: Attention, case: Case) -> None:
    arguments = case.to(torch.bfloat16, "cuda").capturing(0).arguments
    form(**arguments)

    torch.cuda.set_sync_debug_mode("error")
    try:
        form(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_large_map_s_own_scale_is_cudnn_s() -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("cuDNN is not faster there")
    q = torch.zeros(2, 16, 4096, HEAD_DIM, dtype=torch.bfloat16, device="cuda")

    assert dense.attention_for(q) is dense.cudnn_attention
    assert dense.attention_for(q[:, :, :1024]) is None
    assert dense.attention_for(q.float()) is None


def test_the_triton_kernel_measures_without_waiting(case: Case) -> None:
    reason = ragged.unavailable(torch.device("cuda"), dtype=torch.bfloat16, head_dim=HEAD_DIM)
    if reason is not None:
        pytest.skip(f"triton {reason}")
    arguments = case.to(torch.bfloat16, "cuda").arguments
    ragged.ragged_attention(**arguments)

    torch.cuda.set_sync_debug_mode("error")
    try:
        ragged.ragged_attention(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
