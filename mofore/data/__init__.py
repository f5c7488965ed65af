"""From video files to batches: `prepare` writes a manifest, training reads clips without labels."""
