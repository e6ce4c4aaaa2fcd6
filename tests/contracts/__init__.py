"""What every implementation of a seam promises: one body of tests for all of them."""
