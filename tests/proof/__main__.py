"""`python -m tests.proof`: kills a real server again and again under load and accounts for all that it acknowledged."""

import argparse
import secrets
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import monotonic

import trio

from tests.process import ServerFailed
from tests.proof import checker, trace
from tests.proof.client import Unexpected
from tests.proof.records import RoomRecords
from tests.proof.rounds import Proof, Violated

_SHORT_SECONDS, _FULL_SECONDS = 30.0, 300.0
_TOLD_MAX = 20  # violations that are printed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof",
        description="Proves on a real server that nothing acknowledged is lost: clients send hard over sockets and REST, "
        "and edit, delete, react, vote, pin and schedule in a lively room; the server is killed (kill -9) and "
        "restarted, and everything is accounted for. Then system calls are traced, to see that each message was synced "
        "to the disk before it was acknowledged.",
        epilog="Exit status: 0 if every promise held, 1 if not, with a description.",
    )
    parser.add_argument("--short", action="store_true", help=f"{_SHORT_SECONDS:g} s of rounds, for every change")
    parser.add_argument("--seconds", type=float, help=f"no new round after so long (default {_FULL_SECONDS:g})")
    parser.add_argument("--rounds", type=int, default=1_000_000, help="at most so many rounds")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="what chance begins with")
    parser.add_argument(
        "--sabotage",
        choices=checker.SABOTAGES,
        help="tamper with the records before they are judged: the proof has to fail then",
    )
    parser.add_argument("--no-trace", action="store_true", help="leave the trace of system calls out")
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = _SHORT_SECONDS if options.short else _FULL_SECONDS
    return options


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _prove(options: argparse.Namespace, directory: Path) -> None:
    tell = partial(print, flush=True)
    started = monotonic()
    proof = Proof(directory, _free_port(), options.seed, options.seconds, options.rounds, tell)
    tell(f"seed {options.seed} (the same seed makes the same choices; the moments of the kills still vary)")
    trio.run(proof.run)
    if options.sabotage:
        tell(f"the records are tampered with now: {options.sabotage}")
        checker.sabotage(proof.world.ledger, options.sabotage)
    proof.judge()
    ledger = proof.world.ledger
    stored = sum(len(events) for events in proof.final_histories().values())
    heard = sum(len(events) for each in ledger.connections for events in each.heard.values())
    repeated = len(ledger.acks) - ledger.acknowledged
    tell(
        f"kills {ledger.kills}, orderly ends {ledger.orderly_ends}, sockets {len(ledger.connections):,}; sent "
        f"{len(ledger.sent):,}, acknowledged {ledger.acknowledged:,}, of them verified {ledger.acknowledged:,}, lost 0; "
        f"answered again {repeated:,}, each the same; stored {stored:,}; heard on sockets {heard:,}, each once and in "
        f"order; watermarks {len(ledger.marks):,}, none backwards; {monotonic() - started:.0f} s"
    )
    tell(f"lively room: {_lively(ledger.room)}")


def _lively(room: RoomRecords) -> str:
    """What was acknowledged in the lively room and found right."""
    done = [deed.what for deed in room.deeds if deed.answered]
    answered = [saying for saying in room.sayings.values() if saying.answered]
    sent_at = [saying.send_at for saying in answered if saying.send_at]
    expired_at = [saying.expires_at for saying in answered if saying.expires_at]
    figures = {
        "edits": done.count("text"),
        "deletions": done.count("deleted"),
        "reactions": sum(what not in ("text", "deleted", "pinned", "vote") for what in done),
        "votes": done.count("vote"),
        "pins": done.count("pinned"),
        "scheduled and sent once": len(sent_at),
        "scheduled around a kill": sum(map(room.near_a_kill, sent_at)),
        "expired": len(expired_at),
        "expired around a kill": sum(map(room.near_a_kill, expired_at)),
        "readings": len(room.readings),
        "counts checked": len(room.counts),
        "replays without a gap": len(room.replays),
    }
    if missing := [name for name, figure in figures.items() if not figure]:
        raise Violated([f"the run holds no {name}: it proves nothing of them" for name in missing])
    return ", ".join(f"{name} {figure:,}" for name, figure in figures.items())


def _violations(trouble: BaseException) -> list[str] | None:
    """What was broken, in words; None if the trouble is none of the server's."""
    if isinstance(trouble, BaseExceptionGroup):
        found = [_violations(each) for each in trouble.exceptions]
        return None if None in found else [text for each in found for text in each or ()]
    if isinstance(trouble, Violated):
        return trouble.violations
    return [str(trouble)] if isinstance(trouble, Unexpected | ServerFailed | trace.NotSynced) else None


def main() -> int:
    """The exit status: 1 for a violation, described on standard error."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="gearlink-proof-") as directory:
        try:
            _prove(options, Path(directory))
            if not options.no_trace:
                print(trace.prove(Path(directory) / "trace"), flush=True)
        except Exception as trouble:
            if (violations := _violations(trouble)) is None:
                raise
            print(f"VIOLATED, seed {options.seed}: {len(violations)} findings", file=sys.stderr)
            for text in violations[:_TOLD_MAX]:
                print(f"- {text}", file=sys.stderr)
            return 1
    print("every promise held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
