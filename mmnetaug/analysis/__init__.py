"""The cost of networks, their memory on devices, and accuracy over cost."""
