"""Every REST call of this server, one declaration each. Data only: nothing here runs when a request comes in."""

from typing import Final

from config import limits
from gearlink import calls
from gearlink.errors import (
    ACCOUNT_DELETED,
    ACCOUNT_SUSPENDED,
    FORBIDDEN,
    INVALID_REFRESH_TOKEN,
    INVITE_REQUIRED,
    MUST_BE_ENCRYPTED,
    NOT_FOUND,
    OVERLOADED,
    REFUSED_BY_PRIVACY,
    REGISTRATION_CLOSED,
    STALE_DEVICES,
    TOO_MANY_DEVICES,
    USERNAME_TAKEN,
    WRONG_CODE,
)
from gearlink.http_api import (
    archives,
    auth,
    conversations,
    joining,
    keys,
    messages,
    people,
    reactions,
    relations,
    scheduling,
    sync,
)
from gearlink.http_api.table import Blob, LogQuery, PageQuery, Route, UsernameQuery
from gearlink.images import IMAGE_TYPES
from gearlink.rights import Right
from gearlink.views import DeliveryView, Device, MessageView, Page, User

_CONVERSATION = "/conversations/{conversationId}"

ROUTES: Final[tuple[Route, ...]] = (
    # --- signing up, in and out ---------------------------------------------------------------------------------------
    Route(
        "POST", "/auth/verify/request", auth.request_verification,
        "Send a code to a phone number; the answer is the same whether the number is known or not",
        needs="nobody", body=calls.VerifyRequest, answers={202: calls.VerifyRequested}, refusals=(OVERLOADED,),
    ),
    Route(
        "POST", "/auth/verify/confirm", auth.confirm_verification, "Sign up or in with the code",
        needs="nobody", body=calls.VerifyConfirm, answers={200: calls.SignedIn},
        refusals=(
            WRONG_CODE, ACCOUNT_SUSPENDED, ACCOUNT_DELETED, REGISTRATION_CLOSED, INVITE_REQUIRED, NOT_FOUND, TOO_MANY_DEVICES,
        ),
    ),
    Route(
        "POST", "/auth/refresh", auth.refresh, "Exchange a refresh token for a new pair; each works once",
        needs="nobody", body=calls.RefreshForm, answers={200: calls.TokenPair}, refusals=(INVALID_REFRESH_TOKEN,),
    ),
    Route("POST", "/auth/logout", auth.logout, "End the session of this device", answers={204: None}),
    Route(
        "GET", "/devices", auth.list_devices, "The caller's devices, by id",
        query=PageQuery, answers={200: Page[Device]},
    ),
    Route(
        "DELETE", "/devices/{deviceId}", auth.remove_device, "Sign a device out for good; its sockets close",
        answers={204: None}, refusals=(NOT_FOUND,),
    ),
    # --- people -------------------------------------------------------------------------------------------------------
    Route("GET", "/users/me", people.read_own_profile, "The caller's own profile", answers={200: User}),
    Route(
        "PATCH", "/users/me", people.change_own_profile, "Change the keys that are present in one's own profile",
        body=calls.ProfileForm, answers={200: User}, refusals=(USERNAME_TAKEN,),
    ),
    Route(
        "PUT", "/users/me/avatar", people.set_own_avatar, "Make this picture one's own; its metadata is taken out",
        takes=IMAGE_TYPES, body_bytes_max=limits.AVATAR_BYTES_MAX, answers={200: calls.AvatarSet},
    ),
    Route("DELETE", "/users/me/avatar", people.remove_own_avatar, "Take one's own picture away", answers={204: None}),
    Route(
        "GET", "/avatars/{avatarId}", people.read_avatar, "A picture of somebody or of a conversation",
        gives=IMAGE_TYPES, answers={200: Blob, 304: None}, refusals=(NOT_FOUND,),
    ),
    Route("GET", "/users/{userId}", people.read_user, "A user's profile", answers={200: User}, refusals=(NOT_FOUND,)),
    Route(
        "GET", "/users", people.find_users, "Find a user by username, in any case, with or without `@`; none or one",
        query=UsernameQuery, answers={200: Page[User]},
    ),
    Route(
        "POST", "/contacts/discover", people.discover_contacts, "Which of these hashed phone numbers are users",
        body=calls.DiscoverForm, answers={200: Page[calls.Discovery]},
    ),
    *keys.ROUTES,
    # --- conversations ------------------------------------------------------------------------------------------------
    *conversations.ROUTES,
    *joining.ROUTES,
    *archives.ROUTES,
    # --- messages -----------------------------------------------------------------------------------------------------
    Route(
        "GET", _CONVERSATION + "/messages", conversations.list_messages,
        "A page of the log by sequence number: the newest, or those before or after one",
        query=LogQuery, answers={200: Page[MessageView]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "POST", _CONVERSATION + "/messages", conversations.send_message,
        "Send a message; the same `tempId` again answers the same and stores nothing",
        body=calls.MessageForm, answers={201: calls.SentMessage},
        refusals=(NOT_FOUND, FORBIDDEN, REFUSED_BY_PRIVACY, MUST_BE_ENCRYPTED, STALE_DEVICES, OVERLOADED), right=Right.SEND,
    ),
    Route(
        "PUT", _CONVERSATION + "/read", conversations.mark_read, "Everything up to this number has been read",
        body=calls.ReadForm, answers={204: None}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "GET", "/messages/{messageId}", conversations.read_message, "One message",
        answers={200: MessageView}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "GET", "/messages/{messageId}/deliveries", conversations.list_deliveries,
        "How far a message has got with each member",
        query=PageQuery, answers={200: Page[DeliveryView]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    *messages.ROUTES,
    *reactions.ROUTES,
    *relations.ROUTES,
    *scheduling.ROUTES,
    *sync.ROUTES,
)  # fmt: skip
