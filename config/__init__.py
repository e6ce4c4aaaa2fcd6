"""What an operator may choose (`settings`), what nobody may choose (`limits`), and the ways in and out of a file."""
