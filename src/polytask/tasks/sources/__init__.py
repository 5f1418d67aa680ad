"""Where rows come from, one kind of source a file: tables, arrays, images, what Python hands over, bundled data."""
