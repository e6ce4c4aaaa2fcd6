"""The vectors of what is carried: letters with their padding, attachments, archives under a recovery key."""

import hashlib
import json
import struct
import zlib
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.second import archives, attachments
from tests.second.cast import ANN, ARCHIVE, CONVERSATION, OTHER_CONVERSATION, secret
from tests.second.letters import pad
from tests.second.primitives import b64

Vector = dict[str, Any]

ROSTER = {"version": 2, "hash": b64(hashlib.sha256(b"a statement").digest())}
MESSAGE_ID = "0190a7c0-0000-7000-8000-0000000000d0"


def _letters() -> list[Vector]:
    """One of each type; what is optional is there once."""
    common = {"conversationId": CONVERSATION}
    message = {"type": "message", **common, "count": 1, "tempId": "t-1", "kind": "text", "content": "Ahoj 🐎"}
    return [
        message,
        {**message, "count": 2, "replyToId": MESSAGE_ID, "expiresInSeconds": 3600, "roster": ROSTER},
        {"type": "edit", **common, "count": 3, "messageId": MESSAGE_ID, "content": "Ahoj!"},
        {"type": "reaction", **common, "count": 4, "messageId": MESSAGE_ID, "emoji": "🐎", "added": True},
        {
            **{"type": "sender-key", **common, "keyId": b64(secret("key id", 16)), "iteration": 17},
            **{"chainKey": b64(secret("chain")), "signatureKey": b64(ANN.account_key), "roster": ROSTER},
        },
        {"type": "resend-request", **common, "messageId": MESSAGE_ID, "reason": "no-session"},
        {"type": "resend-request", **common, "count": 7, "reason": "no-envelope"},
        {
            **{"type": "resend", **common, "messageId": MESSAGE_ID, "sequenceNumber": 5, "epoch": "of today"},
            **{"createdAt": "2026-01-31T12:00:00.000Z", "letter": json.dumps(message, ensure_ascii=False)},
        },
        {
            **{"type": "link", **common, "accountKey": b64(ANN.account_seed)},
            **{"proof": b64(secret("proof")), "archiveId": ARCHIVE},
        },
        {"type": "of-tomorrow", **common, "unknown": [None, 1.5, {"deep": "📦"}]},
    ]


def letters() -> Vector:
    """letters.json: texts and their padding, and plaintexts that are no letters."""
    texts = [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in _letters()]
    start, end = f'{{"type":"of-tomorrow","conversationId":"{CONVERSATION}","x":"', '"}'
    for length in (158, 159, 160, 319):
        texts.append(start + "x" * (length - len(start) - len(end)) + end)
    good = texts[0].encode()
    refused = {
        "nothing": b"",
        "zeros alone": bytes(160),
        "no 0x80": good + bytes(160 - len(good)),
        "something behind the 0x80": good + b"\x80" + bytes(10) + b"x",
        "a zero too few": pad(good)[:-1],
        "a block too many": pad(good) + bytes(160),
        "no JSON": pad(b"hello"),
        "no object": pad(b'["message"]'),
        "no UTF-8": pad(good[:-1] + b',"a":"\xff"}'),
        "no type": pad(json.dumps({"conversationId": CONVERSATION}).encode()),
    }
    elsewhere = good.replace(CONVERSATION.encode(), OTHER_CONVERSATION.encode())
    return {
        "description": (
            "Letters that came in the conversation `conversationId`. `text` is the JSON that was padded, `padded` the "
            "plaintext in hex. A reader gets `text` out of `padded`; a writer of the same text makes the same `padded`. "
            "The plaintexts of `refused` fail with their `reason`. Of the letter whose type is of tomorrow nothing is "
            "shown, and it is acknowledged."
        ),
        "conversationId": CONVERSATION,
        "letters": [{"text": text, "padded": pad(text.encode()).hex()} for text in texts],
        "refused": [
            *({"why": why, "reason": "unreadable-letter", "padded": raw.hex()} for why, raw in refused.items()),
            {"why": "of another conversation", "reason": "misdirected", "padded": pad(elsewhere).hex()},
        ],
    }


def pattern(size: int) -> bytes:
    """The file of a vector: byte i is i modulo 251."""
    return bytes(i % 251 for i in range(size))


def broken_files() -> dict[str, bytes]:
    """Encrypted files that are not whole, by what is wrong with them, under the key of the file of 200,000 bytes."""
    file_key = secret("file of 200000")
    sealed, sealer = attachments.seal(file_key, pattern(200_000)), AESGCM(file_key)
    size = attachments.CHUNK + attachments.TAG
    full = sealer.encrypt(attachments.nonce(0, False), pattern(attachments.CHUNK), None)
    return {
        "the last chunk is missing": sealed[: 3 * size],
        "the last byte is missing": sealed[:-1],
        "two chunks are swapped": sealed[size : 2 * size] + sealed[:size] + sealed[2 * size :],
        "a byte more": sealed + b"\x00",
        "nothing at all": b"",
        "a full chunk and an empty final one": full + sealer.encrypt(attachments.nonce(1, True), b"", None),
    }


def attachment() -> Vector:
    """attachment.json: files of every length that matters, and files that are not whole."""
    cases = []
    for size in (0, 1, 100, 65_535, 65_536, 65_537, 131_072, 200_000):
        file_key = secret(f"file of {size}")
        sealed = attachments.seal(file_key, pattern(size))
        case: Vector = {"size": size, "key": file_key.hex(), "encryptedSize": len(sealed)}
        case |= {"sha256": hashlib.sha256(sealed).hexdigest(), "start": sealed[:16].hex(), "end": sealed[-16:].hex()}
        cases.append(case | ({"encrypted": sealed.hex()} if size <= 100 else {}))
    broken = broken_files().items()
    return {
        "description": (
            "Files whose byte i is i modulo 251. Of the encrypted file: its size, its SHA-256, its first and last 16 "
            "bytes, and the whole if it is small. `broken` are changes to the file of 200,000 bytes (the last one: "
            "the first 65,536 bytes of it under the same key) by which it has to be refused. Bytes in hex."
        ),
        "chunkSize": attachments.CHUNK,
        "nonces": [
            {"chunk": chunk, "last": last, "nonce": attachments.nonce(chunk, last).hex()}
            for chunk, last in ((0, False), (0, True), (1, False), (2**32, True))
        ],
        "files": cases,
        "broken": [{"why": why, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for why, data in broken],
    }


def stored(text: bytes) -> bytes:
    """RFC 1950 around one stored block of RFC 1951: every zlib reads it, and no version of zlib decides how it looks."""
    block = b"\x01" + struct.pack("<HH", len(text), len(text) ^ 0xFFFF) + text
    return b"\x78\x01" + block + struct.pack(">I", zlib.adler32(text))


def archive() -> Vector:
    """archive.json: recovery keys as they are shown and typed, the backup key, and two chunks under it."""
    entropy = secret("recovery key", 17) + bytes([secret("last bits", 1)[0] & 0xF0])
    shown = archives.recovery_key(entropy)
    backup_key = archives.backup_key(entropy, ANN.user_id)
    chunks: dict[int, Vector] = {}

    def put(number: int, text: str) -> None:
        nonce, packed = secret(f"nonce {number}", 24), stored(text.encode())
        ad = archives.chunk_ad(ANN.user_id, ARCHIVE, number)
        sealed = archives.seal(backup_key, nonce, packed, ad)
        chunk = {"number": number, "text": text, "packed": packed.hex(), "nonce": nonce.hex(), "ad": ad.hex()}
        chunks[number] = chunk | {"chunk": sealed.hex()}

    put(1, '{"text": "first"}\n{"text": "druhý"}\n')
    put(2, '{"text": "third"}\n')
    sealed = [bytes.fromhex(chunks[number]["chunk"]) for number in (1, 2)]
    manifest = {"version": 1, "userId": ANN.user_id, "accountKey": b64(ANN.account_seed), "chunks": 2}
    put(0, json.dumps(manifest | {"digest": b64(archives.running(sealed))}) + "\n")
    typo = ("1" if shown[7] != "1" else "2").join((shown[:7], shown[8:]))
    return {
        "description": (
            "A recovery key: 140 bits in 18 bytes, left-aligned; as it is shown; spellings of a person that mean the "
            "same and mistakes. The backup key of it, and chunks of an archive. `packed` is the zlib stream of `text` "
            "(a writer may compress otherwise; a reader gets `text` out of it); with the same nonce and `packed` a "
            "writer makes the same chunk. A chunk read as another number is refused. The lines of chunks 1 and 2 are no rows "
            "of a real history; `digests` are the running hash over none, one and both of them. Bytes in hex."
        ),
        "userId": ANN.user_id,
        "archiveId": ARCHIVE,
        "entropy": entropy.hex(),
        "recoveryKey": shown,
        "alsoTyped": [shown.lower(), shown.replace("-", ""), shown.replace("-", " ").replace("0", "O")],
        "mistyped": [typo, shown[:-1], shown + "0", "", shown[5:] + "-" + shown[:4], shown.replace("-", "-U", 1)],
        "backupKey": backup_key.hex(),
        "chunks": [chunks[number] for number in sorted(chunks)],
        "digests": [archives.running(sealed[:count]).hex() for count in range(3)],
    }
