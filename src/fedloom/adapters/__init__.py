"""What the strategies and the workloads of low-rank adapters agree on: names in records, and patterns for modules."""
