"""One toy for each seam, each in a file of its own, as CONTRIBUTING says."""
