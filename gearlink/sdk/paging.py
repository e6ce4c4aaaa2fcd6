"""Lists that come in pages: their items, a conversation's past, and what the sync call tells, each as an async iterator.

None of them is a generator, so each may be left at any point without leaving anything open. They fetch a page when it is
asked for and hold no more than that one. They know nothing of HTTP: what fetches is given to them.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from gearlink.views import MessageView, Page

T = TypeVar("T")


class Items(Generic[T]):
    """The items of a list, fetched page by page as they are asked for."""

    __slots__ = ("_fetch", "_items", "_next", "_position")

    def __init__(
        self, fetch: Callable[..., Awaitable[Page[T]]], params: dict[str, Any] | None = None, position: str = "cursor"
    ) -> None:
        self._fetch, self._position = fetch, position
        self._items: deque[T] = deque()
        self._next: dict[str, Any] | None = params or {}

    def __aiter__(self) -> "Items[T]":
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._next is None:
                raise StopAsyncIteration
            page = await self._fetch(params=self._next)
            self._items.extend(page.items)
            self._next = None if page.next is None else {**self._next, self._position: page.next}
        return self._items.popleft()


class History:
    """The pages of a conversation's past, in one direction. One may be short, or empty, and not be the last."""

    __slots__ = ("_fetch", "_limit", "_more", "_name", "_position")

    def __init__(
        self, fetch: Callable[..., Awaitable[Page[MessageView]]], before: int | None, after: int | None, limit: int
    ) -> None:
        self._fetch = fetch
        self._name, self._position = ("before", before) if after is None else ("after", after)
        self._limit = limit
        self._more = True

    def __aiter__(self) -> "History":
        return self

    async def __anext__(self) -> list[MessageView]:
        while self._more:
            params = {"limit": self._limit}
            if self._position is not None:
                params[self._name] = self._position
            page = await self._fetch(params=params)
            self._more = page.next is not None
            if page.next is not None:
                self._position = int(page.next)  # of the history the cursor is a sequence number, as text
            if page.items:
                return sorted(page.items, key=lambda message: message.sequence_number, reverse=self._name == "before")
        raise StopAsyncIteration
