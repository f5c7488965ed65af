"""What turns clips into latents, and context latents into forecasts."""
