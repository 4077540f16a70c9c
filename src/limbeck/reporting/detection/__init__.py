"""What a detection run leaves behind to be looked at, and the page made from it."""
