"""From a frame to a pattern of 128 × 128 pixels: mask, background, substrate and scaling."""
