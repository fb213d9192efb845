"""One file a method: what each says of the input, of heads, of layers, and of what is patched."""
