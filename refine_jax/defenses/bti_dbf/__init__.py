"""BTI-DBF: a backdoor's trigger is inverted by way of the benign features, and then purified or unlearned.

    settings.py       what both variants can be told
    losses.py         what each part is trained for
    phases.py         trainings one after another on the same images, each with checkpoints of its own
    inversion.py      pretraining, mask, inversion; the target class
    purification.py   BTI-DBF (P), 'bti_dbf_p'
    unlearning.py     BTI-DBF (U), 'bti_dbf_u'

Settings, losses, their weights and the order of things are those of the released program; docs/defenses.md lists the
departures from it.

References:
    Xu et al., Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features, ICLR 2024;
    github.com/xuxiong0214/BTIDBF.
"""
