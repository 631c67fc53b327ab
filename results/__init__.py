"""The ledger: every question, answer, judgment and score of an evaluation, in one DuckDB file.

``store`` opens a ledger, adds records and reads them back; ``queries`` holds the named SELECTs that reports and
the command line show. The file is plain DuckDB: ``duckdb.connect(path, read_only=True)`` and the views at the end
of ``schema.sql`` are all that a notebook needs.
"""
