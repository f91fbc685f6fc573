"""Floor 4: one flat per entity."""
