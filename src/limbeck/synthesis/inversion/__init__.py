"""Pictures made by optimising their pixels: one engine, its parts, and the published methods as settings of it."""
