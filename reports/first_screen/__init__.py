"""First screen of a report: what happened in the runs, in plain words."""
