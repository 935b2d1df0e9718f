"""The study's detector with augmented passes while it learns playing cards; small factors, for a CPU's sake."""

_base_ = "./cards.py"

model = dict(_delete_=True, type="mmnetaug.NetAug", model={{_base_.model}}, expand=[1, 1.5], width=[1, 1.5])
optim_wrapper = dict(type="mmnetaug.NetAugOptimWrapper")
default_hooks = dict(checkpoint=dict(type="mmnetaug.TinyCheckpointHook"))
