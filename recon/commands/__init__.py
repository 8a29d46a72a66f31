"""The programs: the only place that puts operators, models, data and methods together."""
