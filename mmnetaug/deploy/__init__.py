"""Export of tiny networks to ONNX and TFLite, in float and int8."""
