"""What balanced steps cost, beside plain PyTorch and the other libraries; `make bench-balancing`."""
