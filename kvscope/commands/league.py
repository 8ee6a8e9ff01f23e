"""`kvscope league`: policies × budgets × prompts × seeds at equal true bytes, in one file; and its standings."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvscope import options
from kvscope.arguments import Verb, add_verbs, number, whole
from kvscope.errors import UsageError
from kvscope.narration import narrate, print_data

if TYPE_CHECKING:
    from kvscope.league.settings import Settings
    from kvscope.league.table import League

_MEASURE = "kl"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, VERBS)


def run(args: argparse.Namespace) -> int:
    """Run one verb; returns the exit code."""
    return VERBS[args.verb].run(args)


def run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--policies",
        nargs="+",
        required=True,
        metavar="P",
        help="cache policies, as `kvscope run --policy` takes them; then /N for sink scales, @CODEC for a KV codec",
    )
    add("--budgets", nargs="+", default=[], metavar="B", help="bytes, or fractions of the bf16 history: 40MB 20%% 0.05")
    add("--prompts", type=Path, metavar="FILE", help="text or .jsonl, a prompt a line; or a folder of .txt")
    add("--held-out", type=whole, metavar="N", help="N captions that infinity-tiny never saw (instead of --prompts)")
    add("--samples", type=whole, metavar="N", help="use only the first N prompts")
    add("--seeds", nargs="+", type=whole, default=[0], metavar="N", help="seeds of the sampled bits (default: 0)")
    options.model_options(parser)
    add("--orders", type=Path, metavar="FILE", help="head orders, or a calibration, for the policies that need one")
    add("--weights", type=Path, metavar="DIR", help="folder with the transformer, the VAE and the text encoder")
    add("--random-weights", action="store_true", help="no weights: true memory and time, an image without meaning")
    add("--tau", type=number, metavar="X", help="temperature (default: the model's)")
    add("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="also lpips, image_reward or hps, by its weights",
    )
    add("--jobs", type=whole, default=1, metavar="N", help="processes, a thread each (default: %(default)s)")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the league (HDF5); gone on with if it is there",
    )
    add("--overwrite", action="store_true", help="start anew, and replace output files that exist")
    _report_options(parser)


def show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("league", type=Path, metavar="FILE", help="a league, finished or not")
    parser.add_argument("--overwrite", action="store_true", help="replace output files that exist")
    _report_options(parser)


def run_run(args: argparse.Namespace) -> int:
    """Measure what is missing, then say who stands where."""
    # Deferred, here and below: --help must load neither numpy nor h5py.
    from kvscope.league.running import run_league

    _check_reports(args)
    settings = _settings(args)
    _check_against(args, settings.policies)
    league = run_league(settings, args.output, jobs=args.jobs, overwrite=args.overwrite, narrate=narrate)
    return _report(args, league)


def run_show(args: argparse.Namespace) -> int:
    """Say who stands where in a league as it is now."""
    from kvscope.league.file import load

    _check_reports(args)
    return _report(args, load(args.league))


VERBS = {
    "run": Verb(
        run_run,
        run_options,
        "measure policies at equal true bytes; the same command goes on where it stopped",
        "kvscope league run --policies full heatkv --budgets 20% 10% 5% --held-out 100 --jobs 4 -o league.h5",
    ),
    "show": Verb(
        run_show,
        show_options,
        "print the standings of a league, or write them as a page, a picture or a table",
        "kvscope league show league.h5 --against heatkv --html league.html",
    ),
}


def _report_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--against", metavar="P", help="also the difference from this policy, prompt by prompt")
    add("--csv", type=Path, metavar="FILE", help="write every row, with the command that repeats it")
    add("--html", type=Path, metavar="FILE", help="write one page with all curves and tables")
    add("--svg", type=Path, metavar="FILE", help="write the curves of one measure")
    add(
        "--measure",
        metavar="M",
        help=f"for --svg: kl, psnr, ssim, agreement_free, … (default: {_MEASURE})",
    )
    add("--json", action="store_true", help="print one JSON object on stdout")


def _check_reports(args: argparse.Namespace) -> None:
    """What can be refused is refused before anything is measured."""
    from heatkv.errors import UnknownNameError
    from heatkv.files import check_new
    from kvscope.league.table import MEASURES

    if args.measure is not None and args.measure not in MEASURES:
        raise UnknownNameError("measure", args.measure, MEASURES)
    if args.measure is not None and args.svg is None:
        raise UsageError("--measure is of the curves; give --svg FILE too")
    for path in (args.csv, args.html, args.svg):
        if path is not None:
            check_new(path, overwrite=args.overwrite)


def _check_against(args: argparse.Namespace, policies: tuple[str, ...]) -> None:
    from heatkv.errors import UnknownNameError

    if args.against is not None and args.against not in policies:
        raise UnknownNameError("policy of this league", args.against, policies)


def _report(args: argparse.Namespace, league: League) -> int:
    from heatkv.files import write_new
    from kvscope.league.chart import curves_svg
    from kvscope.league.page import league_page
    from kvscope.league.report import league_json, league_text, rows_csv
    from kvscope.league.standings import standings

    table = standings(league, against=args.against)
    texts: list[tuple[Path | None, Callable[[], str]]] = [
        (args.csv, lambda: rows_csv(league)),
        (args.html, lambda: league_page(league, table, against=args.against)),
        (args.svg, lambda: curves_svg(league.settings, table, args.measure or _MEASURE)),
    ]
    for path, text in texts:
        if path is not None:
            narrate(f"written to {write_new(path, text().encode(), overwrite=args.overwrite)}")
    if args.json:
        print_data(json.dumps(league_json(league, table, against=args.against), indent=2, allow_nan=False))
    else:
        print_data(league_text(league, table, against=args.against))
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    from dataclasses import replace

    from heatkv.config import model_config
    from kvscope.league.perceptual import parsed
    from kvscope.league.settings import Settings, target_bytes

    config = model_config(args.model)
    if args.random_weights and args.weights is not None:
        raise UsageError("--random-weights reads no --weights; give one or the other")
    bare = Settings(
        policies=("full",),
        targets=(),
        prompts=tuple(_prompts(args)),
        seeds=tuple(args.seeds),
        model=config.name,
        cfg=config.cfg if args.cfg is None else args.cfg,
        tau=config.tau if args.tau is None else args.tau,
        weights=None if args.weights is None else str(args.weights),
        random_weights=args.random_weights,
        resolution=args.resolution,
        aspect=args.aspect,
        sink_scales=args.sink_scales,
        orders=None if args.orders is None else str(args.orders),
        orders_sha256=None if args.orders is None else _sha256(args.orders),
        dtype=args.dtype,
        device=args.device,
        metrics=parsed(args.metric),
    )
    bare.job("full", None)  # refuses what no run could do
    try:
        targets = tuple(target_bytes(text, bare.history_bytes) for text in args.budgets)
    except ValueError as error:
        raise UsageError(f"--budgets {error}") from None
    return replace(bare, policies=tuple(args.policies), targets=targets)


def _prompts(args: argparse.Namespace) -> list[str]:
    from heatkv.prompts import read_prompts
    from heatkv.tiny.scenes import held_out_scenes

    if (args.prompts is None) == (args.held_out is None):
        raise UsageError("give prompts: either --prompts FILE or --held-out N")
    if args.held_out is not None:
        known = len(held_out_scenes())
        if args.model != "infinity-tiny" or not 1 <= args.held_out <= known:
            raise UsageError(f"--held-out {args.held_out}; infinity-tiny alone has held-out captions, {known} of them")
        prompts = [scene.caption for scene in held_out_scenes(args.held_out)]
    else:
        prompts = read_prompts(args.prompts)
    if args.samples is not None and not 1 <= args.samples <= len(prompts):
        raise UsageError(f"--samples {args.samples}; there are {len(prompts)} prompts")
    return prompts[: args.samples]


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected head orders or a calibration") from None
