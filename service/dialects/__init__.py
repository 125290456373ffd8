"""One folder per API that Headrace speaks; each translates and does nothing more."""
