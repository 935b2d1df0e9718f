"""The same by tiny transfer learning: biases, the classifier and lite residual modules learn, all else is frozen."""

_base_ = "../transfer/mobilenet_v3_w035_cub200.py"

model = dict(_delete_=True, type="mmnetaug.TinyTL", model={{_base_.model}}, input_size=160)
