"""What one machine does: GPUs, memory by trying it out, runtimes, the start-up file."""
