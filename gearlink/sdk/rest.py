"""Every call over HTTP in one class: about people, conversations and messages, over one exchange with its tokens.

What belongs to which is in `people`, `conversations` and `messages`; how a call is made in `exchange`. A route without a
method here can be asked for with `call`.
"""

from gearlink.sdk.conversations import Conversations
from gearlink.sdk.messages import Messages
from gearlink.sdk.people import People


class Rest(People, Conversations, Messages):
    """All the calls. `server` is the address without a path, e.g. `http://127.0.0.1:8080`."""
