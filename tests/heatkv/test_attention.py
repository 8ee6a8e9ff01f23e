"""One way of attention is chosen for every device and said in one line; all give the same output, mass and map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heatkv.attention import PATHS, Attended, Path, attend, choose_path
from heatkv.errors import HeatKVError, OptionError, UnknownNameError
from heatkv.kernels import ragged, varlen
from heatkv.probe import Capture
from heatkv.visible import Visible
from tests.heatkv.visible_cases import (
    NUM_SCALES,
    QUERY_SCALE,
    SIZES,
    Kept,
    expected,
    kept_sources,
    queries,
    scales_of,
    visible_case,
)

ON_CPU = [Path("grouped", "test"), Path("plain", "test")]
EVERYTHING = Capture(mass=True, unconditional=True, maps=True)
MASS = {torch.float32: 5e-7, torch.bfloat16: 1e-5}
OUT = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
"""In units of the largest value; see kernels/test_grouped.py."""

PATHS_ON_CPU = pytest.mark.parametrize("path", ON_CPU, ids=lambda path: path.name)
heads_keep = st.lists(kept_sources, min_size=1, max_size=4)


def _choose(device: str, requested: str = "auto") -> Path:
    return choose_path(device, dtype=torch.bfloat16, head_dim=128, requested=requested)


def _attend(visible: Visible, path: Path, capture: Capture, *, conditional_rows: int = 1) -> tuple[Tensor, Attended]:
    q = queries(visible)
    scales = scales_of(visible)
    return q, attend(q, visible, scales, path=path, capture=capture, conditional_rows=conditional_rows)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[bool, bool]:
    """Whether CUDA has (triton, varlen), as this test wants to pretend; other devices have neither."""
    for module, works in zip((ragged, varlen), request.param, strict=True):

        def unavailable(device: torch.device, *, works: bool = works, **_: object) -> str | None:
            return None if works and device.type == "cuda" else f"not on this {device.type}"

        monkeypatch.setattr(module, "unavailable", unavailable)
    working: tuple[bool, bool] = request.param
    return working


ALL_KERNELS = pytest.mark.parametrize(
    "kernels", [(True, True), (True, False), (False, True), (False, False)], indirect=True, ids=str
)


class TestChoosePath:
    @ALL_KERNELS
    @pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps"])
    def test_takes_the_fastest_that_works(self, device: str, kernels: tuple[bool, bool]) -> None:
        path = _choose(device)

        on_cuda = {(True, True): "triton", (True, False): "triton", (False, True): "varlen", (False, False): "plain"}
        assert path.name == {"cpu": "grouped", "mps": "plain"}.get(device, on_cuda[kernels])

    @ALL_KERNELS
    @pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
    @pytest.mark.parametrize("requested", PATHS)
    def test_what_is_asked_for_is_used_or_refused(
        self, requested: str, device: str, kernels: tuple[bool, bool]
    ) -> None:
        on_cuda = device == "cuda"
        works = {
            "grouped": device == "cpu",
            "triton": on_cuda and kernels[0],
            "varlen": on_cuda and kernels[1],
            "plain": True,
        }

        if works[requested]:
            assert _choose(device, requested) == Path(requested, "as asked for")
            return
        with pytest.raises(OptionError, match=rf"^attention path {requested} cannot be used here: .+; use auto, or"):
            _choose(device, requested)

    def test_an_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(
            UnknownNameError, match=r"unknown attention path 'groupd'.*nearest first: grouped"
        ) as raised:
            _choose("cpu", "groupd")
        assert all(name in str(raised.value) for name in PATHS)

    @ALL_KERNELS
    @pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
    @pytest.mark.parametrize("requested", ["auto", *PATHS, "other"])
    def test_is_said_in_one_line(self, requested: str, device: str, kernels: tuple[bool, bool]) -> None:
        try:
            text = str(_choose(device, requested))
        except HeatKVError as error:
            text = str(error)

        assert "\n" not in text
        assert len(text) < 200

    def test_says_the_name_and_the_reason(self) -> None:
        assert str(_choose("cpu")) == "grouped (CPU: heads that keep equally many tokens share one call)"

    def test_a_machine_without_cuda_is_told_so(self) -> None:
        with pytest.raises(OptionError, match="needs CUDA, not cpu; use auto, or plain"):
            _choose("cpu", "triton")
        with pytest.raises(OptionError, match="needs CUDA, not cpu; use auto, or plain"):
            _choose("cpu", "varlen")


@PATHS_ON_CPU
class TestEveryPathOnTheCpu:
    @pytest.mark.parametrize("dtype", OUT)
    @given(kept=heads_keep, rows=st.integers(1, 3), current=st.integers(1, 9))
    @settings(max_examples=15)
    def test_gives_dense_attention_of_what_is_visible(
        self, kept: list[Kept], rows: int, current: int, dtype: torch.dtype, path: Path
    ) -> None:
        visible = visible_case(kept, rows=rows, current=current, dtype=dtype)

        q, attended = _attend(visible, path, Capture())

        right = expected(q, visible)
        assert attended.out.dtype == dtype
        assert float((attended.out.double() - right.out).abs().max()) <= OUT[dtype] * right.largest_value
        assert (attended.mass, attended.mass_uncond, attended.map) == (None, None, None)

    @pytest.mark.parametrize("dtype", MASS)
    @given(kept=heads_keep, current=st.integers(1, 9), conditional_rows=st.integers(1, 3))
    @settings(max_examples=15)
    def test_measures_the_mass_of_either_kind_of_rows(
        self, kept: list[Kept], current: int, conditional_rows: int, dtype: torch.dtype, path: Path
    ) -> None:
        visible = visible_case(kept, rows=conditional_rows + 1, current=current, dtype=dtype)

        q, attended = _attend(visible, path, EVERYTHING, conditional_rows=conditional_rows)

        right = expected(q, visible).mass
        unseen = torch.from_numpy(visible.read_tokens(NUM_SCALES) == 0)
        for mass, rows in ((attended.mass, right[:conditional_rows]), (attended.mass_uncond, right[conditional_rows:])):
            assert mass is not None
            assert mass.dtype == torch.float32
            wanted = rows.mean(0).masked_fill(unseen, torch.nan)
            torch.testing.assert_close(mass.double(), wanted, rtol=0, atol=MASS[dtype], equal_nan=True)

    @pytest.mark.parametrize("dtype", MASS)
    @given(kept=heads_keep, current=st.integers(1, 9))
    @settings(max_examples=15)
    def test_maps_every_key_to_its_place_in_the_sequence(
        self, kept: list[Kept], current: int, dtype: torch.dtype, path: Path
    ) -> None:
        visible = visible_case(kept, current=current, dtype=dtype)

        q, attended = _attend(visible, path, Capture(maps=True))

        assert attended.map is not None
        assert attended.mass is None
        assert attended.map.shape == (len(kept), sum(SIZES) + current)
        for head, of_keys in enumerate(expected(q, visible).key_masses):
            seen = [*(scale in kept[head] for scale in range(QUERY_SCALE)), True]
            whole = torch.repeat_interleave(torch.tensor(seen), torch.tensor([*SIZES, current]))
            assert torch.equal(attended.map[head].isnan(), ~whole)
            right = of_keys[0]  # the conditional row alone
            torch.testing.assert_close(attended.map[head, whole].double(), right, rtol=0, atol=MASS[dtype])

    def test_maps_sum_to_one_and_per_scale_to_the_mass(self, path: Path) -> None:
        visible = visible_case([(), (0, 2), (0, 1, 2), (1,)])

        _, attended = _attend(visible, path, EVERYTHING)

        assert attended.map is not None
        assert attended.mass is not None
        torch.testing.assert_close(attended.map.nansum(-1), torch.ones(4), rtol=0, atol=5e-6)
        begin = 0
        for scale, tokens in enumerate((*SIZES, 8)):
            received = attended.map[:, begin : begin + tokens].sum(-1)
            torch.testing.assert_close(received, attended.mass[:, scale], rtol=0, atol=5e-6, equal_nan=True)
            begin += tokens

    @given(kept=heads_keep)
    @settings(max_examples=10)
    def test_mass_is_nan_exactly_where_a_head_sees_nothing_and_sums_to_one(self, kept: list[Kept], path: Path) -> None:
        visible = visible_case(kept)

        _, attended = _attend(visible, path, EVERYTHING)

        for mass in (attended.mass, attended.mass_uncond):
            assert mass is not None
            assert torch.equal(mass.isnan(), torch.from_numpy(visible.read_tokens(NUM_SCALES) == 0))
            torch.testing.assert_close(mass.nansum(-1), torch.ones(len(kept)), rtol=0, atol=5e-6)

    def test_without_unconditional_rows_nothing_is_said_of_them(self, path: Path) -> None:
        _, attended = _attend(visible_case([(0,), ()]), path, EVERYTHING, conditional_rows=2)

        assert attended.mass is not None
        assert attended.mass_uncond is None

    @pytest.mark.parametrize("dtype", OUT)
    def test_capturing_exactly_changes_no_bit(self, dtype: torch.dtype, path: Path) -> None:
        visible = visible_case([(), (0, 2), (0, 1, 2), (1,)], dtype=dtype)

        _, without = _attend(visible, path, Capture())
        captures = [Capture(mass=True), Capture(maps=True), Capture(unconditional=True), EVERYTHING]

        assert all(torch.equal(_attend(visible, path, one)[1].out, without.out) for one in captures)

    def test_measuring_more_does_not_change_what_else_is_measured(self, path: Path) -> None:
        visible = visible_case([(), (0, 2), (0, 1, 2)])

        _, alone = _attend(visible, path, Capture(mass=True))
        _, together = _attend(visible, path, EVERYTHING)

        # The map's second look includes the current scale, which is otherwise the rest to 1.
        torch.testing.assert_close(alone.mass, together.mass, rtol=0, atol=5e-6, equal_nan=True)


class TestFastCapture:
    @pytest.mark.parametrize("dtype", OUT)
    def test_of_many_queries_is_as_near_as_the_exact_one(self, dtype: torch.dtype) -> None:
        sizes = 10, 150, 200
        visible = visible_case([(), (0, 2), (0, 1, 2)], current=600, head_dim=32, dtype=dtype, sizes=sizes)
        q, scales = queries(visible), scales_of(visible, sizes=sizes)
        capture = Capture(mass=True, bit_exact=False)

        attended = attend(q, visible, scales, path=ON_CPU[0], capture=capture, conditional_rows=1)

        right = expected(q, visible)
        unseen = torch.from_numpy(visible.read_tokens(NUM_SCALES) == 0)
        wanted = right.mass[0].masked_fill(unseen, torch.nan)
        assert attended.mass is not None
        assert float((attended.out.double() - right.out).abs().max()) <= OUT[dtype] * right.largest_value
        torch.testing.assert_close(attended.mass.double(), wanted, rtol=0, atol=MASS[dtype], equal_nan=True)
