"""What the compiler for TPUs says of a step, in a process of its own."""
