"""One file a kind of task: how its labels are read, how wide its head is, and how outputs are turned into predictions."""
