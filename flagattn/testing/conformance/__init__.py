"""Runs other projects' own tests, from a checkout the user has, on the CPU against this library's names.

    python -m flagattn.testing.conformance --suite flash-attention --src folder

Their test files are imported as they are. `import flash_attn` finds `flagattn.compat`, "cuda" means the CPU, and the
cases are a seeded sample of all that the files collect, spread evenly over their test functions. What is left out, and
why, is data: `suites.py`.
"""
