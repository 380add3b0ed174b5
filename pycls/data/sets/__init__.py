"""Data sets, one file each, and what several of them share: names in the registry, files on disk, splits."""
