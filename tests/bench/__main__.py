"""`python -m tests.bench`: measures, prints every figure beside a raw reference of the same run, and ends by itself."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from tests.bench import crowds, devices, opening, sealing, standing, talking
from tests.bench.report import Figure, save
from tests.bench.stage import FULL, SHORT, Stage, open_stage
from tests.bench.wire import BenchFailed
from tests.process import ServerFailed

BENCHES: dict[str, Callable[[Stage], list[Figure]]] = {
    "throughput": talking.throughput,
    "open-loop": talking.open_loop,
    "one-in-flight": talking.one_in_flight,
    "idle": standing.idle,
    "start": standing.start,
    "rest": standing.rest,
    "history": standing.history,
    "join": crowds.join,
    "reactions": crowds.reactions,
    "presence": crowds.presence,
    "open": opening.conversation,
    "lists": opening.lists,
    "cipher": sealing.cipher,
    "vault": sealing.vault,
    "sizes": sealing.sizes,
    "first": devices.first,
    "missed": devices.missed,
    "ciphertext": devices.ciphertext,
}


_QUIET_LOAD_MAX = 0.3  # of the last minute; more than this takes something away from the two cores


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures GearLink on this machine: the server on one core, the load on another, loopback only.",
        epilog="\n".join(["benches:", *(f"  {name:14} {bench.__doc__}" for name, bench in BENCHES.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="some seconds for each bench; for a first impression")
    parser.add_argument("--only", metavar="NAME[,NAME]", default=",".join(BENCHES), help="these benches alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures with all samples to FILE as well")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="measure the disk of DIR (default: the temporary one)")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := sorted(set(options.only) - set(BENCHES)):
        parser.error(f"no such bench: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    return options


def _kind_of_disk(directory: Path) -> str:
    found = subprocess.run(["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=False)
    kind = found.stdout.strip() or "unknown"
    return f"{kind}, which is memory: syncs cost nothing there, give a disk with --dir" if kind == "tmpfs" else kind


def main() -> int:
    """Exit status 1 if something that was measured was not in order; an aim that is missed is only told."""
    options = _options()
    figures: list[Figure] = []
    started = monotonic()
    with open_stage(SHORT if options.short else FULL, options.dir) as stage:
        cores = f"server on core {stage.server_core}, load on core {stage.load_core}"
        if stage.server_core == stage.load_core:
            cores = "ONE core for server and load: figures of throughput are less than half of what they would be"
        print(f"Python {sys.version.split()[0]}, {os.uname().sysname} {os.uname().release}; {cores}")
        print(f"disk: {_kind_of_disk(stage.directory)}", flush=True)
        if (load := os.getloadavg()[0]) > _QUIET_LOAD_MAX:
            print(f"other programs are busy here (load {load:.2f}): believe the ratios, not the figures", flush=True)
        for name in options.only:
            print(f"{name}: {BENCHES[name].__doc__}", flush=True)
            try:
                found = BENCHES[name](stage)
            except (BenchFailed, ServerFailed, OSError) as trouble:
                print(f"{name} FAILED: {trouble}", file=sys.stderr)
                return 1
            figures += found
            print("\n".join(figure.line() for figure in found), flush=True)
    missed = [figure.name for figure in figures if not figure.reached]
    print(f"{len(figures)} figures in {monotonic() - started:.0f} s; aims missed: {', '.join(missed) or 'none'}")
    if options.json:
        save(figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
