"""What a plan could find, and what its noise is made of, before its verdict's seeds are spent."""
