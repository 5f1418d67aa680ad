"""Architectures on a feature pyramid: each task has a decoder, and between decoders tasks may exchange features."""
