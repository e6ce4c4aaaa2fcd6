"""`gearlink chat`: a small terminal client on the SDK, for a person at a keyboard and for a script behind a pipe.

Promises: every line that was sent is on the server's disk when the program ends with 0; what other people wrote or named
themselves cannot control the terminal; what is said to people and in groups is encrypted from device to device unless
they want it otherwise, and it is shown where it is not; each local profile is one device, kept in a file of its owner,
its keys and history in an encrypted vault beside it; errors are one line. It does nothing that the SDK does not offer.
`command_line` is where it starts.
"""

from gearlink.chat.command_line import main, parser, run
from gearlink.chat.finding import INTERRUPTED, REFUSED

__all__ = ["INTERRUPTED", "REFUSED", "main", "parser", "run"]
