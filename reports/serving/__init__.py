"""Reports over HTTP, to this machine only."""
