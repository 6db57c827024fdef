"""BDMAE: what a masked autoencoder restores otherwise than it was shown is taken for a trigger, and stays restored.

    settings.py       what it can be told, and what is impossible
    autoencoder.py    images of any size through a masked autoencoder, and between patches and pixels
    scores.py         how suspicious each patch is, by the image and by the label
    topology.py       the scores are refined, as triggers are of one piece
    restoration.py    what is suspicious is restored: all of it put together
    pretraining.py    a small autoencoder, where no published one is at hand
    defense.py        'bdmae'

Nothing is known of the trigger, of the training or of the classifier but its answers. Numbers, and the order of
things, are those of the released program; docs/defenses.md lists the departures from it.

References:
    Sun et al., Mask and Restore: Blind Backdoor Defense at Test Time with Masked Autoencoder, 2023
    (arXiv:2303.15564); github.com/tsun/BDMAE.
"""
