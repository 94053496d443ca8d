"""Names of AlphAction's SlowFast, which Nightcrawler's networks start from and are made of.

Source: MVIG-SJTU/AlphAction@4ea202d7:alphaction/modeling/backbone/slowfast.py and
Andy1621/Nightcrawler@259fa5b9:slowfast/models/sf.py. AlphAction's own files put `backbone.` before the names
and hold a classifier of Kinetics-700 that Nightcrawler drops. Stages are called res_nl1 to res_nl4; the
lateral convolution `Tconv1` stands after the stem.
"""

from marey.weights.names import Layout, table

TABLE = """
    [backbone.]{w}.conv1.{p}       trunk.stem.{w}.conv.{p}
    [backbone.]{w}.bn1.{p}         trunk.stem.{w}.bn.{p}
    [backbone.]{w}.res_nl{s}.res_{b}.btnk.conv{i}.{u}.{p}    trunk.stage{s}.{w}.{b}.conv{i}.{u}.{p}
    [backbone.]{w}.res_nl{s}.res_{b}.shortcut.{u}.{p}        trunk.stage{s}.{w}.{b}.shortcut.{u}.{p}
    [backbone.]fast.Tconv1.conv.{p}    trunk.stem.lateral.{p}
    [backbone.]fast.Tconv2.conv.{p}    trunk.stage1.lateral.{p}
    [backbone.]fast.Tconv3.conv.{p}    trunk.stage2.lateral.{p}
    [backbone.]fast.Tconv4.conv.{p}    trunk.stage3.lateral.{p}
    projection.{p}                     head.{p}
    cls_head.pred.{p}                  -       AlphAction's classifier, which is not part of this network
"""
SIGN = "slow.res_nl1.res_0.btnk.conv1.conv.weight"
LAYOUT = Layout("alphaction", frozenset({SIGN, f"backbone.{SIGN}"}), table(TABLE))
