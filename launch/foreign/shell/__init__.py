"""Shell scripts as data: parsed and expanded, never run. ``syntax`` reads a script, ``evaluate`` follows it."""
