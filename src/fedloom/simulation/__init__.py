"""Runtimes that start agents: in this thread, as processes, as Ray actors; and faults to test with."""
