"""The TOML of a small detector on drawn scenes, for tests that begin with the text of a config."""

MODEL = """
[data]
kind = "scenes"
image_size = 32
train_size = 32
test_size = 8

[model]
classes = 4
backbone = { depths = [1, 1], widths = [4, 8], norm = { kind = "batch_norm" } }
neck = { channels = 8, min_level = 3, max_level = 4 }
head = { depth = 1 }
"""
"""The tables of data and model; fields outside of tables are written before it."""

RUN = f"""
{MODEL}
[train]
examples = 48
batch_size = 4
learning_rate = 0.1
"""
"""The config of a run of twelve steps."""

STUDY = """
[study]
seeds = [0, 1]

[[study.axes]]
field = "train.batch_size"
values = [2, 4]

[study.arms.BN]

[study.arms.LN]
"model.backbone.norm" = { kind = "layer_norm", axes = "hwc" }
"""
"""The table of a study of two arms over two batch sizes, written after `RUN`."""
