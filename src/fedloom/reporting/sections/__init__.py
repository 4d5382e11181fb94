"""The parts of a run's report, one file each: every part takes the run folder and returns markup."""
