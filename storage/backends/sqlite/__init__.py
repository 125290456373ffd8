"""SQLite databases and a folder of segments, on one machine."""
