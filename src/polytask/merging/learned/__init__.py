"""Merges that read a little data: coefficients, masks and weights that are learned, one published method a file."""
