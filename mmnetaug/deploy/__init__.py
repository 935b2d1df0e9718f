"""From a tiny network to what runs on devices: ONNX and TFLite, float and int8."""
