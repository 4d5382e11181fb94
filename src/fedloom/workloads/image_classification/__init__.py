"""Image classification: an MLP, a small CNN or a ResNet on digits, Fashion-MNIST or images of your own (torch)."""
