"""Whether what maps say of tokens is so, here."""
