"""What several backbones are built of."""
