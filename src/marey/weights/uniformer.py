"""Names of UniFormer files, of videos and of the 2D UniFormer they start from.

Source: Sense-X/UniFormer@52a0415e:video_classification/slowfast/models/uniformer.py. A 2D convolution is
repeated along time and divided by the length.
"""

from marey.weights.names import Layout, table


def _rows() -> str:
    rows = """
        norm.{p}    trunk.norm.{p}
        head.{p}    head.{p}
    """
    for s in (1, 2, 3, 4):
        rows += f"""
            patch_embed{s}.{{u}}.{{p}}      trunk.stage{s}.embed.{{u}}.{{p}}    inflate
            blocks{s}.{{b}}.{{u}}.{{p}}     trunk.stage{s}.{{b}}.{{u}}.{{p}}    inflate
            blocks{s}.{{b}}.{{v}}.{{u}}.{{p}}    trunk.stage{s}.{{b}}.{{v}}.{{u}}.{{p}}    inflate
        """
    return rows


LAYOUT = Layout("uniformer", frozenset({"patch_embed1.proj.weight"}), table(_rows()))
