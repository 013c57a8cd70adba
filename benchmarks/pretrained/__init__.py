"""What plans cost weights that people use, without training: DINOv2 on captioned photographs."""
