"""Tasks, their labels, losses and metrics; data sources, splits and preprocessing; mixtures of sources."""
