"""The modes of the command line, each from a configuration to its result."""
