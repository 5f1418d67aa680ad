"""One file a kind of task: how its labels are read, how wide its head is, how outputs become predictions."""
