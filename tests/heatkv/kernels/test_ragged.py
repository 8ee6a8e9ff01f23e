"""The Triton kernel, interpreted on the CPU, equals the plain twin; it compiles for the GPUs whose tiles it chooses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.codecs import CODECS
from heatkv.errors import OptionError
from heatkv.kernels.plain import ragged_attention_plain
from heatkv.kernels.ragged import Tile, choose_tile, ragged_attention, unavailable
from heatkv.pool import TokenPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType
    from typing import Any

    from torch import Tensor

    Attention = Callable[..., tuple[Tensor, Tensor, Tensor | None]]

KEPT = st.lists(st.sets(st.integers(0, 5)).map(sorted), min_size=1, max_size=4)
SHARED_BYTES = {80: 166_912, 86: 101_376, 90: 232_448}
"""That a block of threads can have, by compute capability."""


def assert_equals_twin(interpreted: Attention, arguments: dict[str, Tensor | int], **how: int) -> None:
    have_out, have_lse, have_mass = interpreted(**arguments, **how)
    want_out, want_lse, want_mass = ragged_attention_plain(**arguments)
    # Float32, with sums in two orders.
    torch.testing.assert_close(have_out, want_out, rtol=0, atol=1e-5)
    torch.testing.assert_close(have_lse, want_lse, rtol=0, atol=1e-5)
    torch.testing.assert_close(have_mass, want_mass, rtol=0, atol=5e-6)


@settings(max_examples=15)
@given(kept=KEPT, rows=st.integers(1, 4), queries=st.integers(1, 40), seed=st.integers(0, 999), data=st.data())
def test_results_are_those_of_the_plain_twin(
    cases: ModuleType,
    interpreted: Attention,
    kept: list[list[int]],
    rows: int,
    queries: int,
    seed: int,
    data: st.DataObject,
) -> None:
    capture_rows = data.draw(st.integers(1, rows))
    current = data.draw(st.sampled_from([1, queries, 33]))
    num_scales = data.draw(st.sampled_from([7, 13, 16, 20]))
    case = cases.ragged_case(
        kept,
        rows=rows,
        queries=queries,
        current=current,
        num_scales=num_scales,
        capture_rows=capture_rows,
        seed=seed,
    )

    assert_equals_twin(interpreted, case.to(torch.float32).arguments)
    assert_equals_twin(interpreted, case.to(torch.float32).arguments, current_first=True)


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param([[], [], []], id="no head keeps anything"),
        pytest.param([[0, 1, 2, 3, 4, 5], [], [0]], id="one long head, one empty, one short"),
        pytest.param([[0, 1, 2]], id="scales change inside a block"),
        pytest.param([[6]], id="one scale fills several blocks"),
    ],
)
@pytest.mark.parametrize("queries", [1, 37])
def test_edges_of_blocks_and_heads(
    cases: ModuleType, interpreted: Attention, kept: list[list[int]], queries: int
) -> None:
    case = cases.ragged_case(kept, queries=queries, current=queries)

    assert_equals_twin(interpreted, case.to(torch.float32).arguments)


@pytest.mark.parametrize(("queries", "keys"), [(32, 16), (16, 64), (128, 64)])
def test_the_tile_changes_no_result(cases: ModuleType, interpreted: Attention, queries: int, keys: int) -> None:
    case = cases.ragged_case([[1, 3, 5], [], [0]], queries=70, current=70, head_dim=32)

    assert_equals_twin(interpreted, case.to(torch.float32).arguments, tile_queries=queries, tile_keys=keys)


def test_float16_is_rounded_about_as_often_as_dense_attention_rounds(cases: ModuleType, interpreted: Attention) -> None:
    case = cases.ragged_case([[1, 3, 5], [], [0]], queries=37, current=37).to(torch.float16)

    out, _, mass = interpreted(**case.arguments)

    want_out, _, want_mass = cases.masked_dense(case)
    assert out.dtype == torch.float16
    assert mass is not None
    # Weights are rounded to float16 before they meet the values, and the output once more.
    torch.testing.assert_close(out.double(), want_out, rtol=0, atol=2e-3)
    # Mass adds the weights as they were before the rounding.
    torch.testing.assert_close(mass.double(), want_mass, rtol=0, atol=5e-6)


def test_decoded_tokens_are_read_as_a_pool_of_their_own(cases: ModuleType, interpreted: Attention) -> None:
    case = cases.ragged_case([[1, 3, 5], [], [0]], queries=37, current=37, head_dim=32).to(torch.float32)
    arguments = case.arguments
    rows, num_slots, head_dim = arguments["pool_keys"].shape
    pool = TokenPool(num_slots, rows=rows, head_dim=head_dim, dtype=torch.float32, codec=CODECS["int4"])
    pool.write(pool.take(num_slots), arguments["pool_keys"].nan_to_num(), arguments["pool_values"].nan_to_num())
    slots = arguments["slots"]

    keys, values = pool.read(slots.numpy())
    whole_keys, whole_values = pool.read(torch.arange(num_slots, dtype=torch.int32).numpy())
    have = interpreted(
        **arguments | {"pool_keys": keys, "pool_values": values, "slots": torch.arange(len(slots), dtype=torch.int32)}
    )

    want = ragged_attention_plain(**arguments | {"pool_keys": whole_keys, "pool_values": whole_values})
    for mine, theirs in zip(have, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("current_first", [False, True])
def test_capture_does_not_change_a_bit_of_the_output(
    cases: ModuleType, interpreted: Attention, *, current_first: bool
) -> None:
    case = cases.ragged_case([[1, 3], [], [0, 4]], queries=37).to(torch.float32)

    out, lse, mass = interpreted(**case.capturing(2).arguments, current_first=current_first)
    plain_out, plain_lse, nothing = interpreted(**case.capturing(0).arguments, current_first=current_first)

    assert torch.equal(out, plain_out)
    assert torch.equal(lse, plain_lse)
    assert mass is not None
    assert nothing is None


def test_heads_may_be_started_in_any_order(cases: ModuleType, interpreted: Attention) -> None:
    arguments = cases.ragged_case([[1, 3], [], [0, 4]]).to(torch.float32).arguments
    reverse = {**arguments, "order": arguments["order"].flip(0).contiguous()}

    for have, want in zip(interpreted(**reverse), interpreted(**arguments), strict=True):
        assert torch.equal(have, want)


def test_output_lies_in_memory_as_the_queries_do(cases: ModuleType, interpreted: Attention) -> None:
    arguments = cases.ragged_case([[1], []], queries=5).to(torch.float32).arguments

    out, _, _ = interpreted(**arguments)

    assert out.stride() == arguments["q"].stride()


@pytest.mark.parametrize(("head_dim", "dtype"), [(24, torch.float32), (8, torch.float32), (16, torch.float64)])
def test_a_head_dim_or_dtype_without_a_form_is_refused_in_one_line(
    cases: ModuleType, head_dim: int, dtype: torch.dtype
) -> None:
    case = cases.ragged_case([[0]], head_dim=head_dim).to(dtype)

    with pytest.raises(OptionError, match=f"found head_dim {head_dim} in .*; choose the plain") as raised:
        ragged_attention(**case.arguments)

    assert "\n" not in str(raised.value)


def test_unavailable_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert unavailable(cpu, dtype=torch.bfloat16, head_dim=128) == "needs CUDA, not cpu"
    assert "not float64" in str(unavailable(cuda, dtype=torch.float64, head_dim=128))
    assert "not 24" in str(unavailable(cuda, dtype=torch.bfloat16, head_dim=24))

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert unavailable(cuda, dtype=torch.bfloat16, head_dim=128) == "triton is not installed"


def test_nothing_but_a_launch_imports_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import heatkv.kernels.ragged, heatkv.kernels.varlen"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("dtype_bytes", [2, 4])
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_a_tile_fits_the_shared_memory_and_is_not_much_wider_than_the_queries(
    capability: int, dtype_bytes: int
) -> None:
    shared_bytes = SHARED_BYTES[capability]
    for head_dim in (16, 64, 128, 256):
        for num_queries in (1, 16, 36, 4096):
            tile = choose_tile(num_queries, head_dim, dtype_bytes=dtype_bytes, shared_bytes=shared_bytes)

            assert tile.shared_bytes(head_dim, dtype_bytes) < shared_bytes
            assert tile.queries < max(32, 2 * num_queries)


def test_a_large_gpu_gets_the_largest_tile_and_a_tiny_one_the_smallest() -> None:
    assert choose_tile(4096, 128, dtype_bytes=2, shared_bytes=232_448) == Tile(64, 64, warps=4, stages=3)
    assert choose_tile(4096, 128, dtype_bytes=2, shared_bytes=0) == Tile(16, 16, warps=2, stages=1)


@pytest.mark.parametrize(
    ("capability", "dtype", "current_done"),
    [(86, "bf16", False), (90, "bf16", False), (90, "bf16", True), (90, "fp32", False)],
)
def test_the_kernel_compiles_within_the_shared_memory_of_a_gpu(
    capability: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, current_done: bool
) -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    dtype_bytes = 4 if dtype == "fp32" else 2
    tile = choose_tile(4096, 128, dtype_bytes=dtype_bytes, shared_bytes=SHARED_BYTES[capability])

    compiled = _compiled(triton, capability, dtype, tile, current_done=current_done)

    assert compiled.metadata.shared <= SHARED_BYTES[capability]


def _compiled(
    triton: ModuleType, capability: int, dtype: str, tile: Tile, *, current_done: bool
) -> Any:  # Any: triton ships no types
    """The kernel with capture, compiled as its first launch on such a GPU would."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from heatkv.kernels.ragged_kernel import ragged_attention_kernel as kernel

    fixed = {"head_dim": 128, "mass_columns": 16, "capture": True, "current_done": current_done}
    fixed |= {"block_queries": tile.queries, "block_keys": tile.keys}
    pointers = dict.fromkeys(("slots", "offsets", "sources", "order"), "*i32") | {"lse": "*fp32", "mass": "*fp32"}
    signature, constants, aligned = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        noun = name.removesuffix("_pointer")
        if name in fixed:
            signature[name], constants[(index,)] = "constexpr", fixed[name]
        else:
            signature[name] = "i32" if noun == name else pointers.get(noun, f"*{dtype}")
        if name.endswith("_stride") or (noun != name and noun not in pointers):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
