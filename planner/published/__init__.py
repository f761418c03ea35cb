"""Published measurements: rows of other people's tables as specs, predicted and compared with what was measured."""
