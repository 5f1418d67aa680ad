"""The loop, its stages, events, resume and distribution."""
