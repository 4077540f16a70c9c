"""What is known of real images without having any: terms of the loss on images that are being made."""
