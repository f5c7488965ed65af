"""From video files to batches: prepare writes a manifest, decode reads frames, training never sees a label."""
