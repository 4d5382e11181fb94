"""A study's report: one page, a table in the terminal, and progress while it runs."""
