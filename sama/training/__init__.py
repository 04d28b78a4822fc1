"""Training: settings, data and model of a run, the loop, its state on disk, and its reports."""
