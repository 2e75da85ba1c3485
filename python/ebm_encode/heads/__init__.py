"""Energy heads: labels from recorded searches, training, the head file, and evaluation."""
