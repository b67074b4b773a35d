"""The pages of results: from committed records to Markdown and pictures; `benchmarks/tables.py` writes them."""
