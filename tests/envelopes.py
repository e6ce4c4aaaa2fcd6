"""What clients put into encrypted messages, for tests that look at how the server hands it on.

Nothing is encrypted: a body is any bytes, and which ones a device was given is all that a test asks.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import httpx

from gearlink.clock import new_id
from tests.handsets import Handset
from tests.house import Person

KEY_ID = "c2VuZGVyIGtleSBvbmU"


def text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def raw(body: str) -> bytes:
    return urlsafe_b64decode(body + "=" * (-len(body) % 4))


async def equip(*devices: Person) -> None:
    """Each publishes keys, and counts from now on."""
    for device in devices:
        (await device.http.put("/keys", json=Handset(device.device_id).upload())).raise_for_status()


def envelope(device: Person, body: bytes = b"", kind: str = "message") -> dict[str, str]:
    """What is for this device alone; without a body its own name."""
    body = body or f"for {device.device_id}".encode()
    return {"userId": device.id, "deviceId": device.device_id, "type": kind, "body": text(body)}


def to_each(*devices: Person, body: bytes = b"") -> dict[str, Any]:
    return {"scheme": "double-ratchet", "envelopes": [envelope(device, body) for device in devices]}


def to_all(body: bytes = b"for all", **more: Any) -> dict[str, Any]:
    return {"scheme": "sender-key", "keyId": KEY_ID, "body": text(body), **more}


async def post(sender: Person, room: str, encrypted: dict[str, Any], temp_id: str = "", **more: Any) -> httpx.Response:
    """A send over REST."""
    form = {"encrypted": encrypted, "tempId": temp_id or new_id(), **more}
    return await sender.http.post(f"/conversations/{room}/messages", json=form)


async def posted(sender: Person, room: str, encrypted: dict[str, Any], **more: Any) -> dict[str, Any]:
    message: dict[str, Any] = (await post(sender, room, encrypted, **more)).raise_for_status().json()
    return message


def told_alone(device: Person, message: dict[str, Any]) -> bool:
    """Whether the message has the envelope of this device and no other."""
    return message["content"] is None and message["encrypted"] == to_each(device)
