"""Random histories, and clients that have to end up with what the server shows."""
