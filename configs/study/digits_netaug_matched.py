"""The demo with the initialisation of new channels that NetAug had first, which the study compares with."""

_base_ = "../yolov3_mbv3_w035_netaug_digits.py"

custom_imports = dict(imports=["mmnetaug", "benchmarks.study_parts"])

model = dict(type="mmnetaug.MatchedNetAug")
