"""Cases of ragged attention, and the Triton kernel on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heatkv.kernels.varlen import Sequences

_FOLDER = Path(__file__).parent


def _load(name: str) -> ModuleType:
    # pytest's importlib mode puts no test folder on sys.path.
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """The module of the inputs and their float64 answer: tests/heatkv/kernels/ragged_cases.py."""
    return _load("ragged_cases")


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., tuple[Tensor, Tensor, Tensor | None]]]:
    """`ragged_attention` as Triton's interpreter computes it, in a process of its own; errors come as ValueError.

    Its blocks are 16 queries by 16 keys unless told, so that small inputs have many. `current_first`: it goes on from
    attention over the current scale that was computed before it.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    protocol = _load("interpreter")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(_FOLDER / "interpreter.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:

        def call(
            *, tile_queries: int = 16, tile_keys: int = 16, current_first: bool = False, **arguments: Tensor | int
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            tile = {"queries": tile_queries, "keys": tile_keys, "warps": 4, "stages": 1}
            protocol.send(process.stdin, {**arguments, "tile": tile, "current_first": current_first})
            answer = protocol.receive(process.stdout)
            assert answer is not None, "the interpreter's process ended; its own words are on stderr"
            if "error" in answer:
                raise ValueError(answer["error"])
            return answer["out"], answer["lse"], answer["mass"]

        yield call
        assert process.stdin is not None
        process.stdin.close()


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation made while this was on."""

    numbers = 0

    def __torch_dispatch__(
        self,
        function: Any,
        types: object,
        arguments: Any = (),
        keywords: Any = None,  # Any: whatever torch calls
    ) -> Any:
        made = function(*arguments, **(keywords or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor) and not function.is_view:
                self.numbers = max(self.numbers, one.numel())
        return made


@pytest.fixture
def largest_tensor() -> LargestTensor:
    return LargestTensor()


@pytest.fixture(scope="session")
def plain_sequences() -> Callable[..., tuple[Tensor, Tensor]]:
    """Attention of `heatkv.kernels.varlen.Sequences`, one after another, in place of torch's CUDA kernel."""

    def attend(sequences: Sequences) -> tuple[Tensor, Tensor]:
        out, lse = [], []
        ends = sequences.query_starts[1:].tolist(), sequences.key_starts[1:].tolist()
        begin_query = begin_key = 0
        for end_query, end_key in zip(*ends, strict=True):
            q = sequences.queries[begin_query:end_query, 0].float()
            scores = q @ sequences.keys[begin_key:end_key, 0].float().T
            out.append(scores.softmax(dim=-1) @ sequences.values[begin_key:end_key, 0].float())
            lse.append(scores.logsumexp(dim=-1))
            assert end_query - begin_query <= sequences.most_queries
            assert end_key - begin_key <= sequences.most_keys
            begin_query, begin_key = end_query, end_key
        assert (begin_query, begin_key) == (len(sequences.queries), len(sequences.keys))
        return torch.cat(out)[:, None].to(sequences.queries.dtype), torch.cat(lse)[:, None]

    return attend
