"""`kvscope fidelity`: learn, from forced runs of many schedules, how attention lost turns into bits gone wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope import options
from kvscope.arguments import whole
from kvscope.errors import UsageError
from kvscope.narration import narrate, print_data
from kvscope.units import fraction_text

if TYPE_CHECKING:
    from kvscope.fidelity import Fidelity, Line


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("traces", type=Path, nargs="+", metavar="TRACE", help="finished runs of policy full, of one model, two or more")
    add("--schedules", type=whole, default=60, metavar="N", help="schedules to try on each (default: %(default)s)")
    add("--seed", type=whole, default=0, metavar="N", help="of the random ones (default: %(default)s)")
    options.device_option(parser)
    add("--threads", type=whole, metavar="N", help="CPU threads (default: torch's choice)")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="what was learnt, as JSON, with every trial")
    add("--picture", type=Path, metavar="FILE", help="also draw every trial, the line and its band, as SVG")
    add("--overwrite", action="store_true", help="replace an output file that exists")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Try schedules on every trace, fit, write, and say how well the estimate ranks them."""
    # Deferred: --help must load neither numpy nor torch.
    from heatkv.config import model_config
    from heatkv.files import check_new, write_new
    from kvscope.replay import kind_of, learnt
    from kvscope.runner import load_pipeline
    from kvscope.scatter import scatter_svg
    from kvscope.trace import Trace

    if len(args.traces) < 2:
        raise UsageError("one trace; give two or more, so that the error can be judged on prompts left out")
    if not 4 <= args.schedules <= 10_000:
        raise UsageError(f"--schedules {args.schedules}; expected 4 to 10000")
    for path in (args.output, args.picture):
        if path is not None:
            check_new(path, overwrite=args.overwrite)
    kind_of(args.traces)
    with Trace.open(args.traces[0]) as first:
        job = options.on_device(args, first.header.job)
    pipeline = load_pipeline(job, model_config(job.model), narrate, threads=args.threads)
    found = learnt(args.traces, pipeline, count=args.schedules, seed=args.seed)
    found.save(args.output, overwrite=args.overwrite)
    narrate(f"written to {args.output}")
    if args.picture is not None:
        write_new(args.picture, scatter_svg(found).encode(), overwrite=args.overwrite)
        narrate(f"picture written to {args.picture}")
    print_data(json.dumps(found.to_json(), indent=2, allow_nan=False) if args.json else fidelity_text(found))
    return 0


def fidelity_text(found: Fidelity) -> str:
    """How many trials, in what range, and how well the estimate ranks and predicts them."""
    prompts = len({trial.prompt for trial in found.trials})
    lines = [
        f"{found.model}: {len(found.trials)} trials on {prompts} runs, losing {fraction_text(found.least)} to "
        f"{fraction_text(found.most)} of attention (est.)"
    ]
    for measure, line in found.lines.items():
        held = fraction_text(found.coverage(measure), absent="unknown")
        width = f"{_width_text(line, found.least)} at the least loss, {_width_text(line, found.most)} at the most"
        lines.append(f"{measure:<6} rank correlation {line.rank_correlation:.3f}; band {width}")
        lines.append(f"       meant to hold 80 % of prompts left out, holds {held}")
    return "\n".join(lines)


def _width_text(line: Line, lost: float) -> str:
    low, high = line.edges(lost)
    return f"×{10**low:.2f} to ×{10**high:.2f}"
