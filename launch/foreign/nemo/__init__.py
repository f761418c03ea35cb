"""NeMo 2.0 recipes that are not Slipway's. ``child`` and what it imports run in a process of their own, with NeMo."""
