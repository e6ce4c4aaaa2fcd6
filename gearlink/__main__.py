"""Lets `python -m gearlink` be the `gearlink` command, for a checkout that was never installed.

It knows nothing of the commands themselves: `gearlink.cli.main` reads the arguments and answers with the exit status.
"""

import sys

from gearlink.cli import main

if __name__ == "__main__":
    sys.exit(main())
