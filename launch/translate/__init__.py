"""The same run written for another stack, with a table of what has no counterpart there."""
