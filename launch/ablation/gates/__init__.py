"""What is known before a run: what arms cost, whether seeds pair, and the gates that a plan passes."""
