"""Work made of many runs: comparisons with single-task baselines under one budget."""
