"""Every call over HTTP in one class: about people, conversations, messages and archives, over one exchange with its tokens.

What belongs to which is in `people`, `conversations`, `messages` and `archives`; how a call is made in `exchange`. A route
without a method here can be asked for with `call`.
"""

from gearlink.sdk.archives import Archives
from gearlink.sdk.conversations import Conversations
from gearlink.sdk.messages import Messages
from gearlink.sdk.people import People


class Rest(People, Conversations, Messages, Archives):
    """All the calls. `server` is the address without a path, e.g. `http://127.0.0.1:8080`."""
