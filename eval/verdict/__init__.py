"""The judge: numbers in, words out."""
