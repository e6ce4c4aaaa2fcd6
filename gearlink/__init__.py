"""GearLink: a self-hosted chat server that is one program, one port and one data directory.

This package holds the language of the server (errors, wire messages, journal), the rules of accounts and
conversations, the doors to the network, and the commands. It stands on `config` and `storage` and is not known to them.
"""

# The one place that states the version: the build reads it here, as text, and so do the programs.
__version__ = "0.1.0"
