"""DropBlock with keep probability 0.9 and block size 5, 300 epochs; 0.95: ``model.backbone.drop_block.drop_prob=0.05``.

The paper does not say behind which layers: behind the stages of strides 16 and 32, as in the DropBlock paper.
"""

_base_ = "../imagenet/mobilenet_v2_tiny_in1k.py"

model = dict(backbone=dict(drop_block=dict(type="mmnetaug.DropBlock", drop_prob=0.1, block_size=5)))
train_cfg = dict(max_epochs=305)
