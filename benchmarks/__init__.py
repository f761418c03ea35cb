"""What the README's numbers come from, each with its command."""
