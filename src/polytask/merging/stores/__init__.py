"""Many tasks in one small directory: the base, and of each task's vector what a kind of store keeps."""
