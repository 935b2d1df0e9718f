"""The demo with the initialisation of new channels that NetAug had first, which the study compares with."""

_base_ = "./digits_netaug.py"

model = dict(type="mmnetaug.MatchedNetAug")
