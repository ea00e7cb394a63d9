"""Tables, figures and notes used by several reports."""
