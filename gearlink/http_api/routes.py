"""Every REST call of this server, one declaration each. Data only: nothing here runs when a request comes in."""

from typing import Final

from gearlink import calls
from gearlink.errors import (
    ALREADY_MEMBER,
    FORBIDDEN,
    GROUP_FULL,
    INVALID_REFRESH_TOKEN,
    INVITE_REQUIRED,
    LAST_OWNER,
    MUST_BE_ENCRYPTED,
    NOT_FOUND,
    REGISTRATION_CLOSED,
    TOO_MANY_DEVICES,
    USERNAME_TAKEN,
    WRONG_CODE,
)
from gearlink.http_api import auth, conversations, people
from gearlink.http_api.table import LogQuery, PageQuery, Route, UsernameQuery
from gearlink.protocol import ConversationView, DeliveryView, Device, MemberView, MessageView, Page, User

_CONVERSATION = "/conversations/{conversationId}"

ROUTES: Final[tuple[Route, ...]] = (
    # --- signing up, in and out ---------------------------------------------------------------------------------------
    Route(
        "POST", "/auth/verify/request", auth.request_verification,
        "Send a code to a phone number; the answer is the same whether the number is known or not",
        needs="nobody", body=calls.VerifyRequest, answers={202: calls.VerifyRequested},
    ),
    Route(
        "POST", "/auth/verify/confirm", auth.confirm_verification, "Sign up or in with the code",
        needs="nobody", body=calls.VerifyConfirm, answers={200: calls.SignedIn},
        refusals=(WRONG_CODE, REGISTRATION_CLOSED, INVITE_REQUIRED, NOT_FOUND, TOO_MANY_DEVICES),
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
    Route("GET", "/users/{userId}", people.read_user, "A user's profile", answers={200: User}, refusals=(NOT_FOUND,)),
    Route(
        "GET", "/users", people.find_users, "Find a user by username, in any case, with or without `@`; none or one",
        query=UsernameQuery, answers={200: Page[User]},
    ),
    Route(
        "POST", "/contacts/discover", people.discover_contacts, "Which of these hashed phone numbers are users",
        body=calls.DiscoverForm, answers={200: Page[calls.Discovery]},
    ),
    # --- conversations ------------------------------------------------------------------------------------------------
    Route(
        "POST", "/conversations", conversations.create_conversation,
        "Open a conversation; a second direct one with the same person answers 200 with the first",
        body=calls.ConversationForm, answers={200: ConversationView, 201: ConversationView},
        refusals=(GROUP_FULL,),
    ),
    Route(
        "GET", "/conversations", conversations.list_conversations, "The caller's conversations, newest activity first",
        query=PageQuery, answers={200: Page[ConversationView]},
    ),
    Route(
        "GET", _CONVERSATION, conversations.read_conversation, "One conversation",
        answers={200: ConversationView}, refusals=(NOT_FOUND,),
    ),
    Route(
        "PATCH", _CONVERSATION, conversations.change_conversation, "Rename or describe a group or channel",
        body=calls.ConversationChange, answers={200: ConversationView}, refusals=(NOT_FOUND, FORBIDDEN),
    ),
    Route(
        "DELETE", _CONVERSATION, conversations.delete_conversation, "Delete a conversation for everybody",
        answers={204: None}, refusals=(NOT_FOUND, FORBIDDEN),
    ),
    Route(
        "GET", _CONVERSATION + "/members", conversations.list_members, "Who is in it",
        query=PageQuery, answers={200: Page[MemberView]}, refusals=(NOT_FOUND,),
    ),
    Route(
        "POST", _CONVERSATION + "/members", conversations.add_members, "Add members; answers those added",
        body=calls.MembersForm, answers={201: Page[MemberView]},
        refusals=(NOT_FOUND, FORBIDDEN, ALREADY_MEMBER, GROUP_FULL),
    ),
    Route(
        "PATCH", _CONVERSATION + "/members/{userId}", conversations.change_member, "Give a member another role",
        body=calls.MemberChange, answers={200: MemberView}, refusals=(NOT_FOUND, FORBIDDEN, LAST_OWNER),
    ),
    Route(
        "DELETE", _CONVERSATION + "/members/{userId}", conversations.remove_member, "Remove a member, or leave",
        answers={204: None}, refusals=(NOT_FOUND, FORBIDDEN, LAST_OWNER),
    ),
    # --- messages -----------------------------------------------------------------------------------------------------
    Route(
        "GET", _CONVERSATION + "/messages", conversations.list_messages,
        "A page of the log by sequence number: the newest, or those before or after one",
        query=LogQuery, answers={200: Page[MessageView]}, refusals=(NOT_FOUND,),
    ),
    Route(
        "POST", _CONVERSATION + "/messages", conversations.send_message,
        "Send a message; the same `tempId` again answers the same and stores nothing",
        body=calls.MessageForm, answers={201: calls.SentMessage},
        refusals=(NOT_FOUND, FORBIDDEN, MUST_BE_ENCRYPTED),
    ),
    Route(
        "PUT", _CONVERSATION + "/read", conversations.mark_read, "Everything up to this number has been read",
        body=calls.ReadForm, answers={204: None}, refusals=(NOT_FOUND,),
    ),
    Route(
        "GET", "/messages/{messageId}", conversations.read_message, "One message",
        answers={200: MessageView}, refusals=(NOT_FOUND,),
    ),
    Route(
        "GET", "/messages/{messageId}/deliveries", conversations.list_deliveries,
        "How far a message has got with each member",
        query=PageQuery, answers={200: Page[DeliveryView]}, refusals=(NOT_FOUND,),
    ),
)  # fmt: skip
