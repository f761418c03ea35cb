"""How far the planner is from published measurements, and how its constants were fitted to them."""
