"""Processes, devices, launching, logging and files: what a run stands on. Knows nothing of images or configs."""
