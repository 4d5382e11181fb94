"""Data shared by workloads: sources, a content-addressed cache of mapped arrays, partitions over clients."""
