"""One image: decoding, modes, orientation, crops, and resized copies on disk."""
