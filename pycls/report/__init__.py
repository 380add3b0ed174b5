"""What a run shows: console, TensorBoard, CSV files, pictures, the summary at its end."""
