"""Augmentation: which operations on which sample, and the operations on batches of pixels."""
