"""Images to learn from: sources, splits, views and loaders. `limbeck.data.door.open_data` opens any of them by name."""
