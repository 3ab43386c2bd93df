"""Settings files of other trainers: reading them, and writing the 65 settings of a run."""
