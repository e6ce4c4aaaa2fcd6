"""The smallest client there can be: it folds frames into what a person would see, and nothing else.

It does what `docs/protocol.md` asks of clients and not a bit more, so whatever it gets wrong the server has told wrongly,
or not at all. What it keeps of a conversation is comparable with what the server shows over REST: `plain` takes out of a
message what the events do not promise (quotes, and what is told to one person only).
"""

import json
from typing import Any

SYSTEM = (
    *("member:joined", "member:changed", "member:left", "conversation:updated"),
    *("message:pinned", "message:unpinned"),
)
PREFERENCES = ("mutedUntil", "archived", "pinnedAt")
INFO = ("name", "description", "avatarUrl", "settings", *PREFERENCES)


def plain(item: dict[str, Any]) -> dict[str, Any]:
    """An item of the history as every client has it."""
    if item["kind"] == "system":
        content = item["content"]
        return {"kind": "system", "content": json.loads(content) if isinstance(content, str) else content}
    kept = {key: value for key, value in item.items() if key not in ("replyTo", "tempId")}
    kept["reactions"] = [{**reaction, "mine": None} for reaction in item["reactions"]]
    if "poll" in item:
        kept["poll"] = {**item["poll"], "myOptions": None}
    return kept


class Room:
    """What a client knows of one conversation. Without a `cursor` it has not heard of an event yet."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}
        self.members: dict[str, str] = {}
        self.items: dict[int, dict[str, Any]] = {}  # by sequence number
        self.marks: dict[tuple[str, str], int] = {}  # (type, user): up to where
        self.knows_marks = True
        self.cursor: int | None = None

    def show(self, view: dict[str, Any]) -> None:
        """Takes over what the server says of the conversation as it is."""
        self.info = {key: view.get(key) for key in INFO}
        self.members = {member["userId"]: member["role"] for member in view["members"]}

    def find(self, message_id: str) -> dict[str, Any]:
        """The message; one that is nowhere if this client was never told of it."""
        return next((item for item in self.items.values() if item.get("id") == message_id), {"reactions": []})

    def drop(self, message_id: str) -> None:
        self.items = {number: item for number, item in self.items.items() if item.get("id") != message_id}


class Client:
    """One device of a user."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.epoch: str | None = None
        self.rooms: dict[str, Room] = {}
        self.drafts: dict[str, str] = {}

    @property
    def cursors(self) -> dict[str, int]:
        return {room_id: room.cursor for room_id, room in self.rooms.items() if room.cursor is not None}

    def forget(self) -> None:
        """The server is another one than it was: nothing that it said before counts."""
        self.rooms, self.drafts = {}, {}

    def room(self, room_id: str) -> Room:
        return self.rooms.setdefault(room_id, Room())

    def introduce(self, view: dict[str, Any]) -> None:
        """The server describes a conversation; what is known of its history stays."""
        self.room(view["id"]).show(view)

    def begin_anew(self, room_id: str) -> None:
        """The user was away from it: its events begin at another number, and what they had begun to write is gone."""
        self.room(room_id).cursor = None
        self.drafts.pop(room_id, None)

    def leave(self, room_id: str) -> None:
        """The user is not in it any more."""
        self.rooms.pop(room_id, None)
        self.drafts.pop(room_id, None)

    def hear(self, frame: dict[str, Any]) -> None:
        """Folds in one frame."""
        kind = frame["type"]
        body = frame["message"] if kind == "message:new" else frame
        if kind == "conversation:created":
            self.introduce(frame["conversation"])
            self.begin_anew(frame["conversation"]["id"])
        elif kind == "conversation:deleted":
            self.leave(frame["conversationId"])
        elif kind == "draft:changed":
            draft = frame["draft"]
            self.drafts[draft["conversationId"]] = draft["content"]
        elif kind in ("message:delivered", "message:read"):
            marks = self.room(frame["conversationId"]).marks
            key = kind, frame["userId"]
            marks[key] = max(marks.get(key, 0), frame["sequenceNumber"])
        elif kind == "conversation:preferences":
            self.room(frame["conversationId"]).info.update({key: frame[key] for key in PREFERENCES})
        elif kind == "message:deleted" and not frame["forEveryone"]:
            self.room(frame["conversationId"]).drop(frame["messageId"])
        elif "sequenceNumber" in body:
            self._hear_event(kind, frame, body)

    def _hear_event(self, kind: str, frame: dict[str, Any], body: dict[str, Any]) -> None:
        room, number = self.room(body["conversationId"]), body["sequenceNumber"]
        if room.cursor is not None:
            if number <= room.cursor:
                return  # what every client has to drop
            assert number == room.cursor + 1, (kind, number, room.cursor)
        room.cursor = number
        if kind in SYSTEM:
            room.items[number] = {"kind": "system", "content": frame}
        if kind == "message:new":
            room.items[number] = dict(body)
        elif kind.startswith(("message:", "reaction:", "poll:")):
            self._amend(room, kind, frame)
        elif kind == "conversation:updated":
            room.info.update({key: frame[key] for key in INFO if key in frame})
        elif kind in ("member:joined", "member:changed"):
            room.members[frame["userId"]] = frame["role"]
        elif kind == "member:left":
            room.members.pop(frame["userId"], None)
            if frame["userId"] == self.user_id:
                self.leave(frame["conversationId"])

    def _amend(self, room: Room, kind: str, frame: dict[str, Any]) -> None:
        if kind == "message:expired":
            for message_id in frame["messageIds"]:
                room.drop(message_id)
            return
        message = room.find(frame["messageId"])
        if kind == "message:edited":
            message.clear()
            message.update(frame["message"])
        elif kind == "message:deleted":
            for key in ("poll", "mentions", "pinnedAt"):
                message.pop(key, None)
            message.update(content=None, reactions=[], deletedAt=frame["deletedAt"], deletedBy=frame["userId"])
        elif kind == "message:pinned":
            message["pinnedAt"] = frame["at"]
        elif kind == "message:unpinned":
            message.pop("pinnedAt", None)
        elif kind == "poll:changed":
            message["poll"] = frame["poll"]
        else:
            message["reactions"] = frame["reactions"]
