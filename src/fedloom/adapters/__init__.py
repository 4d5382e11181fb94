"""Shared by the strategies and the workloads of low-rank adapters: names in records, and patterns for modules."""
