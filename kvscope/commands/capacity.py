"""`kvscope capacity`: which batch fits in a memory, at every resolution and budget, with the ledger behind it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kvscope import options
from kvscope.arguments import fraction, number
from kvscope.errors import UsageError
from kvscope.narration import print_data
from kvscope.units import parse_bytes

BUDGETS = (1.0, 0.5, 0.2, 0.1, 0.05)
_DEVICES = ("cuda", "cpu")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--memory", required=True, metavar="BYTES", help="what there is, as in 24GiB")
    add("--reserve", default="0B", metavar="BYTES", help="of it, left to what is not counted (default: %(default)s)")
    add("--model", default="infinity-2b", metavar="M", help="model (default: %(default)s)")
    add("--resolution", action="append", metavar="R", help="only this one; may be repeated (default: all of the model)")
    add("--aspect", type=number, default=1.0, metavar="A", help="height / width (default: %(default)s)")
    listed = ", ".join(f"{budget:g}" for budget in BUDGETS)
    add(
        "--budget",
        type=fraction,
        action="append",
        metavar="B",
        help=f"only this; may be repeated (default: {listed})",
    )
    add("--policy", metavar="P", help="of this policy (default: any that drops whole head-scales)")
    add("--orders", type=Path, metavar="FILE", help="of the policy: head orders, or a calibration")
    add("--cfg", type=number, metavar="X", help="guidance strength; 1 halves the cache (default: the model's)")
    add("--dtype", default=options.DEFAULT_DTYPE, metavar="D", help="bfloat16 or float32 (default: %(default)s)")
    add(
        "--kv-codec",
        metavar="C",
        help="how stored tokens but the sinks are written: a budget stays the same bytes, but "
        "all of the history takes fewer (default: as the model computes them)",
    )
    add("--device", default="cuda", metavar="D", help="cuda or cpu (default: %(default)s)")
    options.json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print what fits."""
    # Deferred: --help must not load numpy.
    from heatkv.codecs import MODEL, codec_named
    from heatkv.config import model_config
    from heatkv.errors import UnknownNameError
    from kvscope.capacity import Setting, capacity, capacity_text, resolutions_of
    from kvscope.job import DTYPE_BYTES

    if args.device not in _DEVICES:
        raise UsageError(f"--device {args.device}; expected one of {', '.join(_DEVICES)}")
    if args.dtype not in DTYPE_BYTES:
        raise UsageError(f"--dtype {args.dtype}; expected one of {', '.join(DTYPE_BYTES)}")
    budgets = args.budget or list(BUDGETS)
    for budget in budgets:
        if not 0 <= budget <= 1:
            raise UsageError(f"--budget {budget:g}; expected a fraction of history, 0 to 1")
    if args.orders is not None and args.policy in (None, "full"):
        raise UsageError("--orders is only read by a policy that needs one; give --policy, or leave --orders out")
    memory, reserve = _bytes("--memory", args.memory), _bytes("--reserve", args.reserve)
    if memory <= reserve:
        asked = f"--memory {args.memory}" if not reserve else f"--reserve {args.reserve} of --memory {args.memory}"
        raise UsageError(f"{asked} leaves nothing; give what the device has, as in 24GiB")
    config = model_config(args.model)
    known = resolutions_of(config)
    for resolution in args.resolution or ():
        if resolution not in known:
            raise UnknownNameError(f"resolution of {config.name}", resolution, known)
    guidance = config.cfg if args.cfg is None else args.cfg
    setting = Setting(
        config,
        args.device,
        args.dtype,
        DTYPE_BYTES[args.dtype],
        1 if guidance == 1 else 2,
        aspect=args.aspect,
        policy=args.policy,
        codec=codec_named(args.kv_codec or MODEL).name,
        orders=None if args.orders is None else str(args.orders),
    )
    found = capacity(
        setting,
        memory,
        resolutions=list(dict.fromkeys(args.resolution or known)),
        budgets=list(dict.fromkeys(budgets)),
        reserve_bytes=reserve,
    )
    print_data(json.dumps(found.to_json(), indent=2, allow_nan=False) if args.json else capacity_text(found))
    return 0


def _bytes(option: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from None
