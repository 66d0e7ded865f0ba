"""What neighbours on the map tell: grains, their boundaries, mixed points, and regions worth a denser scan."""
