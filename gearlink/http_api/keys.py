"""The keys of devices: publishing one's own, claiming those of others. Each handler is one call of the domain."""

from typing import Final

from gearlink.accounts import Actor
from gearlink.calls import CertificateForm, ClaimForm, KeysForm
from gearlink.domain import Domain
from gearlink.errors import NOT_FOUND, TOO_MANY
from gearlink.http_api.table import Reply, Route
from gearlink.rights import Right
from gearlink.views import ClaimedKeys, ConversationDevices, DeviceIdentities, KeyStatus


async def publish_keys(domain: Domain, actor: Actor, form: KeysForm) -> Reply:
    return 200, await domain.keyring.publish(actor, form)


async def read_key_status(domain: Domain, actor: Actor) -> Reply:
    return 200, await domain.keyring.status(actor)


async def claim_keys(domain: Domain, actor: Actor, form: ClaimForm) -> Reply:
    return 200, await domain.keyring.claim(actor, form)


async def list_device_identities(domain: Domain, actor: Actor, user_id: str) -> Reply:
    return 200, await domain.keyring.devices(actor, user_id)


async def certify_device(domain: Domain, actor: Actor, device_id: str, form: CertificateForm) -> Reply:
    await domain.keyring.certify(actor, device_id, form)
    return 204, None


async def list_conversation_devices(domain: Domain, actor: Actor, conversation_id: str) -> Reply:
    return 200, await domain.keyring.devices_in(actor, conversation_id)


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "PUT", "/keys", publish_keys,
        "Publish the keys of the calling device: one-time pre-keys are added, the others replaced",
        body=KeysForm, answers={200: KeyStatus}, refusals=(TOO_MANY,),
    ),
    Route(
        "GET", "/keys/status", read_key_status, "What the server holds of the calling device, as a count and a digest",
        answers={200: KeyStatus},
    ),
    Route(
        "POST", "/keys/claim", claim_keys, "What it takes to open a session with each device of a user",
        body=ClaimForm, answers={200: ClaimedKeys}, refusals=(NOT_FOUND,),
    ),
    Route(
        "GET", "/users/{userId}/devices", list_device_identities, "The identity keys of a user's devices",
        answers={200: DeviceIdentities}, refusals=(NOT_FOUND,),
    ),
    Route(
        "PUT", "/devices/{deviceId}/certificate", certify_device,
        "Say that a device is one's own: a signature by one's account key",
        body=CertificateForm, answers={204: None}, refusals=(NOT_FOUND,),
    ),
    Route(
        "GET", "/conversations/{conversationId}/devices", list_conversation_devices,
        "The devices for which a conversation's messages are encrypted",
        answers={200: ConversationDevices}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
)  # fmt: skip
