"""Settings of all tests: one thread, so that results do not depend on the machine, and a quiet log."""

import torch

import mmnetaug  # noqa: F401  # registers everything that configs name

torch.set_num_threads(1)
