"""S-CAS scores and orders equal the reference, and every wrong orders file is told apart by its cause."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heatkv.config import MODELS, ModelConfig, VAEConfig
from heatkv.errors import OrdersError, OutputError
from heatkv.orders import HeadOrders
from heatkv.scas import ScasAccumulator, ScasScores

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = ModelConfig("small", num_layers=4, width=48, num_heads=3, num_chunks=2, vae=VAEConfig(16, 16))

Lists = list[list[list[int]]]


def _lists(config: ModelConfig, num_sources: int = 3) -> Lists:
    """Official form: [head, layer] pairs, a seeded random permutation per source scale."""
    random = np.random.default_rng(1)
    pairs = [[head, layer] for layer in range(config.num_layers) for head in range(config.num_heads)]
    return [[pairs[slot] for slot in random.permutation(len(pairs))] for _ in range(num_sources)]


def _write(folder: Path, record: object) -> Path:
    path = folder / "orders.json"
    path.write_text(json.dumps(record))
    return path


def _npy() -> bytes:
    packed = io.BytesIO()
    np.save(packed, np.zeros(3))
    return packed.getvalue()


class TestScores:
    @pytest.mark.parametrize("sinks", [0, 1, 2])
    def test_scores_and_orders_equal_the_reference(self, golden: Path, sinks: int) -> None:
        with np.load(golden / "scas_small.npz") as arrays:
            reference = dict(arrays)
        num_layers, num_heads, num_prompts = reference["shape_LHP"]
        tokens = reference["scale_hw"].prod(axis=1)
        ends = np.cumsum(tokens)
        accumulator = ScasAccumulator(num_layers, num_heads, len(tokens), sinks)

        for prompt in range(num_prompts):
            for target in range(len(tokens)):
                for layer in range(num_layers):
                    probs = reference[f"probs_t{target}"][prompt, layer, 0].mean(axis=1, dtype=np.float64)
                    mass = np.add.reduceat(probs, (ends - tokens)[: target + 1], axis=-1)
                    accumulator.add(target, layer, mass)
            accumulator.prompts += 1
        scores = accumulator.scores()

        # Atol 1e-6: the reference sums float32 probabilities, and differs by 2e-8 from exact sums.
        np.testing.assert_allclose(scores.scores, reference[f"scores_sink{sinks}"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(scores.scores, reference[f"ref_scores_sink{sinks}"], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(scores.orders().to_lists(), reference[f"orders_sink{sinks}"])

    def test_a_score_is_the_mean_over_later_scales_and_prompts(self) -> None:
        accumulator = ScasAccumulator(num_layers=1, num_heads=2, num_scales=4, sink_scales=1)

        accumulator.add(0, 0, [[1.0], [1.0]])
        accumulator.add(1, 0, [[0.5, 0.5], [0.9, 0.1]])
        accumulator.add(2, 0, [[0.1, 0.2, 0.7], [0.1, 0.4, 0.5]])
        accumulator.add(3, 0, [[0.0, 0.4, 0.2, 0.4], [0.1, 0.2, 0.6, 0.1]])
        accumulator.prompts += 1
        scores = accumulator.scores().scores

        expected = [[[np.nan, 0.3, 0.2, np.nan], [np.nan, 0.3, 0.6, np.nan]]]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-15)

    def test_ties_go_to_the_smaller_head_then_the_smaller_layer(self) -> None:
        scores = np.full((2, 3, 3), 0.5)
        scores[1, 2, 1] = 0.1

        orders = ScasScores(scores, sink_scales=1).orders()

        assert orders.to_lists() == [[[2, 1], [0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]]

    def test_mass_over_all_scales_counts_as_mass_up_to_the_current(self) -> None:
        short, long = (ScasAccumulator(1, 1, 4, 0) for _ in range(2))

        short.add(2, 0, [[0.2, 0.3, 0.5]])
        long.add(2, 0, np.array([[0.2, 0.3, 0.5, np.nan]], dtype=np.float32))

        np.testing.assert_allclose(short.sums, long.sums, rtol=0, atol=1e-7)

    def test_merged_accumulators_equal_one(self) -> None:
        random = np.random.default_rng(0)
        whole, parts = ScasAccumulator(2, 3, 4, 1), [ScasAccumulator(2, 3, 4, 1) for _ in range(2)]

        for prompt in range(4):
            for query_scale, layer in np.ndindex(4, 2):
                mass = random.random((3, query_scale + 1))
                whole.add(query_scale, layer, mass)
                parts[prompt % 2].add(query_scale, layer, mass)
            whole.prompts += 1
            parts[prompt % 2].prompts += 1
        parts[0].merge(parts[1])

        np.testing.assert_allclose(parts[0].scores().scores, whole.scores().scores, rtol=1e-12)

    def test_no_prompt_is_no_score(self) -> None:
        with pytest.raises(OrdersError, match="no prompt was measured"):
            ScasAccumulator(1, 1, 4, 0).scores()

    def test_sink_scales_beyond_the_scales_are_refused(self) -> None:
        with pytest.raises(OrdersError, match="4 sink scales; expected 0 to 3"):
            ScasAccumulator(1, 1, 4, 4)

    def test_an_eligible_score_must_be_a_number(self) -> None:
        with pytest.raises(OrdersError, match="not a number"):
            ScasScores(np.full((1, 1, 3), np.nan), sink_scales=0)

    def test_saved_scores_read_back_and_official_files_agree(self, tmp_path: Path) -> None:
        scores = ScasScores(np.random.default_rng(0).random((4, 3, 6)), 2, {"model": "small", "seed": 7})

        scores.save(tmp_path)
        read = ScasScores.load(tmp_path)
        orders = HeadOrders.load(tmp_path / "scas_orders.json", config=SMALL)
        summary = json.loads((tmp_path / "scas_scores.json").read_text())

        np.testing.assert_array_equal(read.scores, scores.scores)
        assert (read.sink_scales, read.metadata) == (2, {"model": "small", "seed": 7})
        assert orders.content_hash == scores.orders().content_hash
        assert orders.sources == range(2, 5)
        assert summary["metadata"]["eligible_source_scales"] == [2, 3, 4]
        assert summary["summary_by_source_scale"]["3"]["max"] == scores.scores[:, :, 3].max()

    def test_saving_twice_needs_permission(self, tmp_path: Path) -> None:
        scores = ScasScores(np.zeros((1, 1, 4)), 1)
        scores.save(tmp_path)

        with pytest.raises(OutputError, match="exists"):
            scores.save(tmp_path)
        scores.save(tmp_path, overwrite=True)

    @pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short", _npy()])
    def test_a_damaged_score_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "scas_scores.npz").write_bytes(content)

        with pytest.raises(OrdersError, match=r"scas_scores\.npz: not a score file"):
            ScasScores.load(tmp_path)


class TestOrders:
    def test_published_orders_are_read_entry_for_entry(self, golden: Path) -> None:
        path = golden / "heatkv_2b_orders.json"

        orders = HeadOrders.load(path, config=MODELS["infinity-2b"])

        assert orders.sources == range(3, 12)
        assert orders.to_lists() == json.loads(path.read_text())

    def test_published_orders_of_another_model_are_refused_by_name(self, golden: Path) -> None:
        with pytest.raises(OrdersError, match=r"for infinity-2b \(32 layers, 16 heads\), the run is infinity-8b"):
            HeadOrders.load(golden / "heatkv_2b_orders.json", config=MODELS["infinity-8b"])

    def test_bare_lists_and_metadata_read_the_same(self, tmp_path: Path) -> None:
        lists = _lists(SMALL)

        bare = HeadOrders.load(_write(tmp_path, lists), config=SMALL)
        noted = HeadOrders.load(_write(tmp_path, {"metadata": {"sink_scales": 3}, "orders": lists}), config=SMALL)

        assert bare.content_hash == noted.content_hash
        assert bare.to_lists() == lists
        assert bare.source == "orders.json"

    def test_metadata_or_the_caller_says_the_first_source(self, tmp_path: Path) -> None:
        path = _write(tmp_path, {"metadata": {"sink_scales": 1}, "orders": _lists(SMALL)})

        assert HeadOrders.load(path, config=SMALL).sources == range(1, 4)
        assert HeadOrders.load(path, config=SMALL, first_source=2).sources == range(2, 5)

    @given(seed=st.integers(0, 2**32 - 1), first_source=st.integers(0, 4), num_sources=st.integers(1, 4))
    @settings(max_examples=20)
    def test_saved_orders_read_back(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int, first_source: int, num_sources: int
    ) -> None:
        random = np.random.default_rng(seed)
        slots = np.array([random.permutation(12) for _ in range(num_sources)], dtype=np.int32)
        orders = HeadOrders(slots, first_source, num_layers=4, num_heads=3)

        path = orders.save(tmp_path_factory.mktemp("orders") / "saved.json")
        read = HeadOrders.load(path, config=SMALL)

        np.testing.assert_array_equal(read.slots, orders.slots)
        assert read.content_hash == orders.content_hash

    def test_a_source_scale_that_is_not_ranked_tells_the_way_out(self, tmp_path: Path) -> None:
        orders = HeadOrders.load(_write(tmp_path, _lists(SMALL)), config=SMALL)

        with pytest.raises(OrdersError, match=r"ranks source scales 3 to 5, the run needs 2 too; .*--sink-scales 3"):
            orders.require(range(2, 5))
        with pytest.raises(OrdersError, match="the run needs 6, 7 too; calibrate again with as many scales"):
            orders.require(range(3, 8))

    def test_orders_in_memory_must_be_permutations(self) -> None:
        with pytest.raises(OrdersError, match="exactly once"):
            HeadOrders(np.zeros((1, 12), dtype=np.int32), 3, 4, 3)
        with pytest.raises(OrdersError, match="shape"):
            HeadOrders(np.zeros((1, 11), dtype=np.int32), 3, 4, 3)


def _swap(lists: Lists) -> object:
    return [[[layer, head] for head, layer in one] for one in lists]


def _drop_entry(lists: Lists) -> object:
    return [lists[0], lists[1][:-1], lists[2]]


def _repeat_entry(lists: Lists) -> object:
    return [[lists[0][0], lists[0][0], *lists[0][2:]], *lists[1:]]


def _negative(lists: Lists) -> object:
    return [[[-1, 0], *lists[0][1:]], *lists[1:]]


def _too_large(lists: Lists) -> object:
    return [[[3, 3], *lists[0][1:]], *lists[1:]]


def _other(_: Lists) -> object:
    return _lists(MODELS["infinity-125m"])


def _note(**metadata: object) -> Callable[[Lists], object]:
    return lambda lists: {"metadata": metadata, "orders": lists}


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (_swap, r"entries are \[layer, head\], expected \[head, layer\]; swap"),
        (_drop_entry, r"source scale 4 has 11 entries, expected 12 \(small: 4 layers × 3 heads\); .* cut short"),
        (_repeat_entry, r"source scale 3 has layer \d head \d 2 times and layer \d head \d not at all"),
        (_negative, r"entry 0 for source scale 3 is \[-1, 0\], expected \[head below 3, layer below 4\]"),
        (_too_large, r"entry 0 for source scale 3 is \[3, 3\]"),
        (_other, r"for infinity-125m \(12 layers, 8 heads\), the run is small \(4 layers, 3 heads\)"),
        (_note(num_layers=40, num_heads=28), r"for infinity-8b \(40 layers, 28 heads\), the run is small"),
        (_note(sink_scales="three"), "sink_scales 'three'; expected a whole number"),
        (lambda _: [], "holds no list of orders"),
        (lambda _: {"metadata": {}}, "holds no list of orders"),
        (lambda _: 7, "holds no list of orders"),
        (lambda _: [1, 2, 3], "source scale 3 is malformed"),
        (lambda lists: [lists[0], [[0, 1], [2]]], "source scale 4 is malformed"),
        (lambda _: [[[0.5, 1.0]]], "source scale 3 is malformed"),
        (lambda lists: [lists[0], []], "source scale 4 is malformed"),
        (lambda _: [[["0", "1"]]], "source scale 3 is malformed"),
        (lambda _: [[[2**70, 1]]], "source scale 3 is malformed"),
    ],
)
def test_each_wrong_orders_file_is_told_apart(tmp_path: Path, spoil: Callable[[Lists], Any], cause: str) -> None:
    path = _write(tmp_path, spoil(_lists(SMALL)))

    with pytest.raises(OrdersError, match=cause) as caught:
        HeadOrders.load(path, config=SMALL)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_json_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "orders.json"
    path.write_text("[[[0, 0],")

    with pytest.raises(OrdersError, match=r"not JSON .*expected an orders file"):
        HeadOrders.load(path, config=SMALL)
