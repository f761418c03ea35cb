"""The kinds of files that can be read, a module each."""
