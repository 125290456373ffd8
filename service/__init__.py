"""HTTP front end: accepts mutations into the log and answers reads from snapshots."""
