"""The options of every command: what each is called, what it means, what it is when not given."""

from __future__ import annotations

import argparse
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heatkv.codecs import CODECS, MODEL
from heatkv.policies import split_policy
from kvscope.arguments import fraction, number, whole
from kvscope.errors import UsageError
from kvscope.tui.screens import SCREENS

if TYPE_CHECKING:
    from kvscope.job import Job
    from kvscope.tui.editing import EditOptions

COLOURS = ("auto", "truecolor", "256", "16", "none")
DEFAULT_DTYPE = "bfloat16"
DEFAULT_PROMPT = "a red circle left of a blue square on a white background"


def model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="infinity-tiny", metavar="M", help="model to run (default: %(default)s)")
    add("--resolution", metavar="R", help="0.06M, 0.25M, 0.60M or 1M (default: 1M, or the model's only one)")
    add("--aspect", type=number, default=1.0, metavar="A", help="height / width, to the nearest template (1.0)")
    add("--sink-scales", type=whole, metavar="N", help="first scales that are never evicted (default: the model's)")
    add("--cfg", type=number, metavar="X", help="guidance strength; 1 halves the cache (default: the model's)")
    add("--dtype", default=DEFAULT_DTYPE, metavar="D", help="bfloat16 or float32 (default: %(default)s)")


def output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    json_option(parser)


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def policy_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--policy",
        metavar="P",
        help="cache policy, as `kvscope policies` lists them (default: heatkv with a budget, full without)",
    )
    add("--budget", type=fraction, metavar="B", help="peak of the cached tokens, as a fraction of the history's")
    add("--orders", type=Path, metavar="FILE", help="head orders, or a calibration, for policies that need one")
    add("--schedule", type=Path, metavar="FILE", help="obey this schedule file instead of planning one")
    codec_option(parser)


def codec_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kv-codec",
        metavar="C",
        help=f"how stored tokens are written: {', '.join(CODECS)}; not the sinks, unless the policy chooses during the "
        "run; a budget is then the same bytes and buys more tokens (default: model, or the schedule's own)",
    )


def weights_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights", type=Path, metavar="DIR", help="folder with the transformer, the VAE and the text encoder")
    add("--random-weights", action="store_true", help="no weights: true memory and time, an image without meaning")
    add("--seed", type=whole, default=0, metavar="N", help="seed of the sampled bits (default: 0)")
    add("--tau", type=number, metavar="X", help="temperature (default: the model's)")
    add("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: %(default)s)")


def threads_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=whole, metavar="N", help="CPU threads (default: torch's choice)")


def job_options(parser: argparse.ArgumentParser) -> None:
    """What is run."""
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help=f"what to draw (default: {DEFAULT_PROMPT!r})")
    add("--negative-prompt", metavar="TEXT", help="text of the unconditional row (default: the learned one)")
    model_options(parser)
    policy_options(parser)
    weights_options(parser)
    add("--no-attention-mass", action="store_true", help="do not measure what attention each scale gets (faster)")
    add("--attention-uncond", action="store_true", help="measure that in the unconditional rows too")
    add(
        "--attention-map",
        nargs="?",
        const="uint8",
        metavar="KIND",
        help="also record what attention each key cell gets: uint8 (codes, the default) or float32",
    )
    add("--fast-capture", action="store_true", help="measure faster; the image may then change by rounding")


def made_options(parser: argparse.ArgumentParser) -> None:
    """What a run makes, and where it goes."""
    add = parser.add_argument
    output_options(parser)
    add("--image", type=Path, metavar="FILE", help="also write the picture, as PNG")
    add("-o", "--output", type=Path, metavar="FILE", help="the trace (default: a new name in this folder)")
    add(
        "--trace-filter",
        default="gzip",
        metavar="F",
        help="how the trace is compressed: gzip, none, or bitshuffle-lz4 with hdf5plugin (default: %(default)s)",
    )


def trace_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, help="a trace file (.h5)")


def edit_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--edit", action="store_true", help="let the schedule be edited (default: nothing can be changed)")
    add("--journal", type=Path, metavar="FILE", help="where edits are kept (default: beside the trace, as .kvs)")
    add("--fidelity", type=Path, metavar="FILE", help="predict errors with what `kvscope fidelity` learnt")


def wanted_edit(args: argparse.Namespace, trace: Path) -> EditOptions | None:
    """How a trace is to be edited; None: not at all. Raises UsageError for options that would be read by nobody."""
    if not args.edit:
        for name in ("journal", "fidelity"):
            if getattr(args, name) is not None:
                raise UsageError(f"--{name} is read for editing only; give --edit too")
        return None
    # Deferred: --help must not load numpy.
    from kvscope.tui.editing import EditOptions

    return EditOptions(trace, args.journal, args.fidelity)


def viewer_options(parser: argparse.ArgumentParser) -> None:
    """Where the viewer begins, how it looks, its keys, and whether it edits."""
    place_options(parser)
    look_options(parser)
    keymap_option(parser)
    edit_options(parser)


def place_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--screen", metavar="S", help=f"the screen to begin with: {', '.join(SCREENS)} (default: {next(iter(SCREENS))})"
    )
    add("--goto", default="", metavar="PLACE", help="the cell to begin with, and more, as in 'map q7 l12 h3 s5 mass'")


def look_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--light", action="store_true", help="dark on light (default: light on dark)")
    add("--high-contrast", action="store_true", help="nothing muted: text at 7 to 1 and more on its ground")
    add("--ascii", action="store_true", help="draw with ASCII only (default: as the terminal can)")
    add(
        "--colours",
        default="auto",
        metavar="C",
        help=f"{', '.join(COLOURS)}: 16 and none draw values as glyphs (default: %(default)s)",
    )


def keymap_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keymap", type=Path, metavar="FILE", help="a file of changed keys (default: the user's own, if there is one)"
    )


def known_screen(args: argparse.Namespace) -> str | None:
    """The screen that --screen names; None: none was named. Raises UsageError."""
    if args.screen is not None and args.screen not in SCREENS:
        raise UsageError(f"--screen {args.screen}; give one of {', '.join(SCREENS)}")
    return None if args.screen is None else str(args.screen)


def wanted_colours(args: argparse.Namespace) -> str | None:
    """How many colours --colours asks for; None: as many as the terminal has. Raises UsageError."""
    if args.colours not in COLOURS:
        raise UsageError(f"--colours {args.colours}; give one of {', '.join(COLOURS)}")
    return None if args.colours == COLOURS[0] else str(args.colours)


def job_of(args: argparse.Namespace) -> Job:
    """The job that the options describe; what is not given is the model's own default."""
    from heatkv.config import model_config
    from kvscope.job import Job

    given = {name: value for name, value in vars(args).items() if value is not None}
    config = model_config(args.model)
    policy = given.get("policy", "heatkv" if "budget" in given else "full")
    _refuse_unread(given, policy)
    return Job(
        prompt=given.get("prompt", DEFAULT_PROMPT),
        model=config.name,
        policy=policy,
        seed=given.get("seed", 0),
        negative_prompt=given.get("negative_prompt"),
        weights=_text(given.get("weights")),
        random_weights=given.get("random_weights", False),
        resolution=args.resolution,
        aspect=args.aspect,
        budget=given.get("budget"),
        orders=_text(given.get("orders")),
        schedule=_text(given.get("schedule")),
        sink_scales=args.sink_scales,
        kv_codec=given.get("kv_codec", MODEL),
        cfg=given.get("cfg", config.cfg),
        tau=given.get("tau", config.tau),
        dtype=args.dtype,
        device=given.get("device", "cpu"),
        attention_mass=not given.get("no_attention_mass", False),
        attention_mass_uncond=given.get("attention_uncond", False),
        attention_map=given.get("attention_map"),
        bit_exact=not given.get("fast_capture", False),
    )


def device_option(parser: argparse.ArgumentParser) -> None:
    """Of commands that run recorded jobs again."""
    parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (default: where the recorded run was)")


def on_device(args: argparse.Namespace, job: Job) -> Job:
    """A recorded job where --device says, if it does."""
    return job if args.device is None else replace(job, device=args.device)


def default_output(model: str, policy: str) -> Path:
    """A new trace's name in the current folder; two of one second differ too."""
    name, _ = split_policy(policy)  # parameters may hold anything
    return Path(f"{model}-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.h5")


def _refuse_unread(given: dict[str, Any], policy: str) -> None:  # Any: parsed options
    """Raises UsageError for options that would be read by nobody: whoever gave them meant something else."""
    if "schedule" in given:
        unread = [
            f"--{name.replace('_', '-')}" for name in ("policy", "budget", "orders", "sink_scales") if name in given
        ]
        if unread:
            raise UsageError(f"--schedule says all that {', '.join(unread)} would; give one or the other")
    elif "orders" in given and policy == "full":
        raise UsageError("--orders is only read under a budget; give --budget, or leave --orders out")
    if given.get("attention_uncond") and given.get("cfg") == 1:
        raise UsageError("--attention-uncond measures rows that --cfg 1 leaves out; give one or the other")
    measured = not given.get("no_attention_mass") or given.get("attention_uncond") or "attention_map" in given
    if given.get("fast_capture") and not measured:
        raise UsageError("--fast-capture measures nothing with --no-attention-mass; give one or the other")
    if given.get("random_weights") and "weights" in given:
        raise UsageError("--random-weights reads no --weights; give one or the other")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
