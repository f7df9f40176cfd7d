"""How updates become one adapter: methods, the driver over files, and the certificate.

A method sees one module at a time, as folded factors on one device (`base.Method`), and
knows no files; `driver` maps it over a cohort's files; `certificate` measures the result.
"""
