"""A head whose classes are sharded over processes."""
