"""What image files there are and which label each has: folders, lists, tar files; duplicates and leaks."""
