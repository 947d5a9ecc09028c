"""How a forward runs fast on a device. Knows layers and tensors, nothing of heads or trees."""
