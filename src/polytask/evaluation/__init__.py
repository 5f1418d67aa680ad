"""Scores, delta-m against single-task baselines, the comparison table and the report."""
