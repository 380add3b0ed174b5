"""The state of a run on disk: whole or not there, verified, readable by any number of processes."""
