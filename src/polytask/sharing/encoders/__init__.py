"""Encoders: inputs in, one feature vector a row out."""
