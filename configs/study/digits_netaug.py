"""The demo with NetAug, and the study's variants of the step at hand."""

_base_ = "../yolov3_mbv3_w035_netaug_digits.py"

custom_imports = dict(imports=["mmnetaug", "benchmarks.study_parts"])
