"""What pruning saves, measured beside the unpruned model in the same run."""
