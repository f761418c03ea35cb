"""Will it fit, is it legal, how fast will it be. Pure Python and NumPy; imports configs, never torch or NeMo."""
