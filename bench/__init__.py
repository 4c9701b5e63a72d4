"""Benchmarks of flagattn and aquila2 against the strongest peers, and the report made from them.

`python -m bench` measures everything and writes bench/results/<machine>/; `python -m bench.report` prints the tables.
"""
