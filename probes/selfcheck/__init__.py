"""Self-checks against closed forms and independent libraries, run by `lossscope doctor`."""
