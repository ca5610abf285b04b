"""Emoji drawings and their names: the project's demonstration, trained in about a minute on two CPU cores.

python -m dual_encoder.train --recipe emoji_demo --data emoji --out build/demo/model
"""

import dataclasses

from dual_encoder.recipes.openstax import RECIPE as OPENSTAX

RECIPE = dataclasses.replace(OPENSTAX, name="emoji_demo").with_settings(batch_size=512, epochs=40)
