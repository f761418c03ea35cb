"""The sections of the doctor, one a file.

To add a section, add ``NAME.py`` that defines ``findings(spec)`` and ``POSITION``, its place in the report: smaller
comes first.
"""
