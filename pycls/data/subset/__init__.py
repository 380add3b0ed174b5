"""What of a training set is trained on, and under which labels: subsets, long tails, label noise."""
