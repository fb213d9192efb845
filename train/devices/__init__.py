"""Devices and processes: the mesh, batches in their places, what the processes do together, what the machine can do."""
