"""Writes tests/vectors/*.json from fixed inputs: `python -m tests.second.make_vectors`. The same each time, everywhere.

How the vectors of one file are made is in `vectors_sessions` (X3DH, Double Ratchet, sender keys), `vectors_trust`
(certificates, rosters, safety numbers) and `vectors_contents` (letters, attachments, archives).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.second import vectors_contents, vectors_sessions, vectors_trust

FOLDER: Final = Path(__file__).resolve().parent.parent / "vectors"

MAKERS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "x3dh.json": vectors_sessions.x3dh,
    "double_ratchet.json": vectors_sessions.double_ratchet,
    "sender_key.json": vectors_sessions.sender_key,
    "letters.json": vectors_contents.letters,
    "attachment.json": vectors_contents.attachment,
    "archive.json": vectors_contents.archive,
    "certificate.json": vectors_trust.certificate,
    "roster.json": vectors_trust.roster,
    "safety_number.json": vectors_trust.safety_number,
}


def text_of(name: str) -> str:
    """What the file has to say."""
    return json.dumps(MAKERS[name](), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in MAKERS:
        (FOLDER / name).write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
