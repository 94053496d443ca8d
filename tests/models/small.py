"""The smallest networks of the families that have no `width`, or need more than it."""

SLIM = [
    ("slowfast_r50", {"width": 16, "beta": 4}),
    ("slowfast_r101_alphaction", {"width": 16, "beta": 4}),
    ("swin3d_t", {"channels": 12, "depths": (2, 2), "heads": (2, 3), "window": (4, 3, 3), "drop_path": 0.3}),
    ("uniformer_s", {"depths": (1, 1, 2, 1), "channels": (8, 16, 24, 32), "head_width": 8, "drop_path": 0.3}),
    ("mvit_b_16x4", {"frames": 8, "crop": 64, "channels": 8, "depth": 4, "starts": (1, 3), "drop_path": 0.0}),
    ("mvit_v2_s", {"frames": 8, "crop": 64, "channels": 8, "depth": 4, "starts": (1, 3), "drop_path": 0.0}),
]
