"""Where the pixels of a batch come from: memory, or files read by worker processes."""
