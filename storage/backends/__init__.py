"""Places to keep things: each back end fulfils `storage.interfaces`."""
