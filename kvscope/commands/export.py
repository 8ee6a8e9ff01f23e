"""`kvscope export`: a trace in a form that other tools, and other people, can open. Redacted unless asked otherwise."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from heatkv.files import is_same_file
from kvscope.errors import OutputError, UsageError
from kvscope.export import EXPORTERS, check_output, load_exporter, write_export
from kvscope.narration import print_data
from kvscope.units import printable


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("trace", type=Path, help="a trace file (.h5); a live one is exported as it stands")
    add("--format", required=True, metavar="F", help=f"one of {', '.join(EXPORTERS)}")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write; for csv, the folder")
    add(
        "--redact",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take out prompts, paths, host and process names, log texts (the default), or keep them",
    )
    add("--no-image", action="store_true", help="leave out pictures, and the bits they can be decoded from")
    add("--arrays", action="store_true", help="json: hold the large arrays too")
    add("--overwrite", action="store_true", help="replace an output file that exists")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Write the export; what was taken out is said on stderr, the files made on stdout."""
    load_exporter(args.format)
    if args.arrays and args.format != "json":
        raise UsageError(f"--arrays is for json; format {args.format} holds the arrays as it is, or cannot")
    target = check_output(args.format, args.output, overwrite=args.overwrite)
    if is_same_file(target, args.trace):
        raise OutputError(f"{args.output}: is the trace itself; choose another name")
    # Deferred: --help must not load numpy.
    from kvscope.export.content import Content
    from kvscope.trace import Trace

    with Trace.open(args.trace) as trace:
        content = Content(trace, redact=args.redact, images=not args.no_image, arrays=args.arrays)
        files = write_export(content, args.format, args.output, overwrite=args.overwrite)
        removed = content.facts.removed
        has_pictures = content.image is not None or (content.scales_done > 0 and content.preview(0) is not None)
    for line in _told(removed, redact=args.redact, shows_pictures=has_pictures and args.format in _PICTURES):
        sys.stderr.write(f"kvscope: {printable(line)}\n")
    if args.json:
        record = {"export": str(args.output), "format": args.format, "files": [str(file) for file in files],
                  "redacted": list(removed)}  # fmt: skip
        print_data(json.dumps(record, indent=2, allow_nan=False))
    else:
        print_data("\n".join(printable(str(file)) for file in files))
    return 0


_PICTURES = ("html", "netcdf")
"""Formats that hold pictures."""


def _told(removed: tuple[str, ...], *, redact: bool, shows_pictures: bool) -> list[str]:
    if not redact:
        lines = ["not redacted: prompts, paths and log lines are in it"]
    else:
        lines = [f"redacted: {', '.join(removed)} (--no-redact keeps them)"]
    if shows_pictures:
        lines.append("pictures are in it: they show what the prompt asked for (--no-image leaves them out)")
    return lines
