"""`kvscope calibrate`: measure over prompts what policies go by; rank the heads."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvscope import options
from kvscope.arguments import whole
from kvscope.errors import UsageError
from kvscope.narration import narrate, print_data, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="one prompt a line, or .jsonl with prompt or caption",
    )
    add("--samples", type=whole, metavar="N", help="use only the first N prompts")
    add(
        "--only",
        choices=["mass"],
        metavar="WHAT",
        help="mass: measure attention mass alone, all that policy heatkv needs, in less time",
    )
    options.model_options(parser)
    options.weights_options(parser)
    options.threads_option(parser)
    options.output_options(parser)
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the calibration (HDF5)")
    add("--official", type=Path, metavar="DIR", help="also write the reference's files: scas_orders.json and the rest")


def run(args: argparse.Namespace) -> int:
    """Measure over prompts what policies go by; rank the heads."""
    from heatkv.prompts import read_prompts
    from kvscope.calibrate import run_calibration
    from kvscope.official import check_official, save_official

    if args.official is not None:
        check_official(args.official, overwrite=args.overwrite)
    prompts = read_prompts(args.prompts)
    if args.samples is not None and not 1 <= args.samples <= len(prompts):
        raise UsageError(f"--samples {args.samples}; {args.prompts} holds {len(prompts)} prompts")
    calibration = run_calibration(
        options.job_of(args),
        prompts[: args.samples],
        args.output,
        only_mass=args.only == "mass",
        overwrite=args.overwrite,
        threads=args.threads,
        narrate=narrate,
    )
    written = [args.output]
    if args.official is not None:
        written += save_official(calibration, args.official, overwrite=args.overwrite)
    if args.json:
        print_json({"calibration": str(args.output), "prompts": len(calibration.settings.prompts)})
    else:
        print_data("\n".join(map(str, written)))
    return 0
