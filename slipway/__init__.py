"""NeMo 2.0 / Megatron-Core training recipes that can be checked, planned, rehearsed, launched and measured.

The four packages are ``configs`` <- ``planner`` <- ``recipes`` <- ``launch``; each imports only those to its left. In a
checkout they are links to the folders at its top level, so that the checkout can be imported as it stands, by Python
and by static tools alike; a wheel holds the files themselves.
"""
