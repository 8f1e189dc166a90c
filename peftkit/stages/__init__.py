"""Running a pipeline: each stage on what the stage before it left, finished ones not twice, and what each adds."""
