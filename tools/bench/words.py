"""What the pages of tools/results say beside their tables."""

SPEED = """# Speed

Written by `python tools/bench/table.py` from the JSON files in `tools/bench/results`.

## Against PyTorch

Our own PyTorch of the same networks (`tools/bench/uda_torch.py`), as published and tuned (no graph where nothing is trained, channels
last, `torch.compile`), both sides in turn in one run. A ratio below 1 means that PyTorch is faster. Share of ceiling: the least time by
operations, at what a product of matrices reached in the same rounds, over ours.
"""
RACE_NOTE = """The machine was shared with others: in these rounds a product of 2048 x 2048 matrices ran at {} to {} GFLOP/s; ratios and
shares compare what ran in the same rounds. The command ran twice: the rows from "whole-scan detection" on are of half an hour later. The
block of 200 + 10 updates ran once, everything else five times; PyTorch's dense pass of a whole scan was timed on a twentieth of its
planes and scaled by operations.

![both ratios of every row](../pictures/race.png)
"""
ENSEMBLE_RACE = """## The five-U-Net ensemble against PyTorch

A training step of five members, each with its own two volumes, against five networks of PyTorch (`tools/bench/ensemble_torch.py`), eager
and tuned (channels last, `torch.compile`), and one member of the published size.
"""
CACNET_RACE = """## CAC-Net against PyTorch

A joint training step of the size `small` by the published loss (`tools/bench/cacnet_torch.py`), on one thread, other work on the second.
"""
CYCLEGAN_RACE = """## Calcium CycleGAN against PyTorch

A training step of both generators and both discriminators, all terms of the loss (`tools/bench/cyclegan_torch.py`), on one thread, other
work on the second core. A published step is 2.04 TFLOP: 1.3 times eager would be more than a product of matrices reaches here.
"""
LABELLING = """## Connected components

Of 512 x 512 x 256 voxels (percolation and spiral: 64 slices; ccta: a phantom from its scan threshold up), medians of 7. Neighbours 8:
every slice for itself. Table: voxels, volume, HU sum, peak, box, centroid, artery and per-slice area and peak of every lesion, against
cc3d with numpy on the foreground (without the last two, on both sides, where components are more than 65,536).
`python tools/bench/run.py --system labelling --rounds 7 --out FILE.json` measures it; the file below is of its forerunner.
"""
LABELLING_NOTE = """The processor is of family 26. A run minutes after the (virtual) machine had started took up to twice as long on our
side (blobs 9.2 to 12.2x cc3d, thorax 1.2 to 1.4x, spiral .11 to .16x); whether programs were compiled or read from the cache made no
difference afterwards.
"""
HEART = """# The heart network

Written by `python tools/bench/table.py` from the JSON files in `tools/bench/results`.

`python tools/bench/run.py --system heart --workdir RUN --out FILE.json` measures a network on phantoms of each protocol that it never saw
(the scan at 0.66 mm in the plane, mean ± SD over scans; under 3 minutes on 2 cores for a network at 3 mm); the files below are of its
forerunner, on the CCTA phantoms of before 2026-11-30 (see [phantom.md](phantom.md)). The aorta's mean and threshold (mean + 3 SD) are those
of a box of 16 mm where the ascending aorta is deepest, as `--threshold-hu auto` takes them; voxels further than five robust SD from the
median (fat at an outline, calcium) do not count. In non-contrast scans the phantom's box is the worse reference: an aorta that moves leaves
it in part. The heart is dilated by 5 mm as published.
"""
HEART_TITLES = {
    "heart_cpu.json": """## heart.py:tiny,whole

`python -m cacjax.train --config heart.py:tiny,whole --workdir runs/heart` takes 4 to 6 minutes on 2 CPU cores. The variant `whole` adds two
classes to the published six: the ascending aorta, and the rest within the pericardium. Without the latter the dilated heart misses a
quarter of the coronary lesions of the phantom, even by its true outlines; with it none.
""",
    "heart_half_cpu.json": """## heart.py:half

The published network whole, 386,942 parameters and six classes, trained by
`python -m cacjax.train --config heart.py:half --workdir runs/heart_half` on voxels of 1.6 mm, in blocks that show as much of the body as
the published ones at 0.8 mm: 1200 steps of two blocks, about 50 minutes on 2 CPU cores (2.1 s a step, AMD EPYC of family 25); its Dice was
still rising when it ended. The published six classes have no aorta: left ventricle and atrium without their outer 5 mm are measured
instead, which with a run of `heart.py:tiny` gave 60 ± 19 HU more (`--only ccta`). `heart.py` itself, 10,000 steps of eight blocks of 128
voxels, takes 32 GB and was not run to its end.
""",
}

SHIPPED = """# The networks that ship with the package

Written by `python tools/bench/table.py` from `tools/bench/results/shipped.json`.

`python -m cacjax.experiments shipped --out DIR` trains the heart network (`heart.py:tiny,whole,scenes`: 72 phantoms, 24 of them without
a heart; 34 minutes on one core of 2, AMD EPYC, 50 GFLOP/s a core, other work on the second) and the detector (`second.py:tiny,scenes`:
both stages of Lessmann 2018 on 120 phantoms of all four protocols, with the labels of CCTA too; on one core of 90 GFLOP/s 30 minutes
for the first stage, 15 to find what it mistakes for calcium, 7 for the second, beside what making the scans takes), and scores held-out
patients: 40 by chest, by gated CT and without a heart; of planning CT and CCTA 15 (`--scans 15`, into the same folder, before). The
heart network was trained before, by the same command. `python tools/ship.py DIR/seed0/networks` writes them to `cacjax/shipped`.

What the rows say. The heart is found as well in patients 350 to 500 mm wide as in others, and nothing without a heart is scored:
abdomens, necks and heads are all refused as `no_heart` (so since 2026-12-01; ten heads had been refused as `not_hounsfield`, because
soft tissue is less than a twentieth of so wide a field). On non-contrast CT calcium is found and categories agree. The true heart in
the network's place is no better: what is lost is lost by the detector.

A lesion needs a voxel of P(coronary calcium) .8 (`scoring.least_probability`). Without that (`--scoring.least_probability=0`) the same
networks gave, by found hearts: chest CT kappa .85, sensitivity .79, FP 28.6 mm³; gated CT .89, .97, 27.4; planning CT .94, .89, 10.3;
CCTA .00, .61, 108. Limits of .5 to .99 were read on 26 of the gated scans; of the 14 others .8 takes kappa from .87 to .96 and FP from
17.5 to 13.6 mm³. It costs small lesions, in planning CT most (sensitivity .89 to .61). On chest CT, of limits of 0, .5, .8 and .9 kappa
is .85, .89, .84 and .81, sensitivity .79, .79, .65 and .63, FP 29, 25, 17 and 10 mm³ (from the probabilities that were kept).

The detector sees 43 mm around a voxel, and a fifth of its patches lie about calcium of valves and aorta, a quarter about what passes
the scan's threshold within the heart. Its forerunner saw 21 mm, with a tenth of its patches about calcium of any kind: on 15 of the
gated scans its kappa was .76 and its false positives 43 mm³, most of them calcium of the aortic valve and the aorta called coronary;
the same 15 gave .90 and 24 without the limit. Those 15 scans were looked at before it was changed; the others of the 40 were not. Three
times the scans (360 for 120, as many steps) teach it nothing: without the limit 34 of the 40 gated scans are in their category by both,
29 of the chest scans where these are 32. Calcium of the LCX is often called LAD, which the sum does not feel. On CCTA nothing is better
(kappa .07 before, false positives 132 mm³): the lumen of coronary arteries that is brighter than the aorta, streams and leads pass for
calcium, and calcium is missed; its scores do not follow the true ones. All of it is of phantoms of the kinds that the networks learned
from: nothing here says how they do on patients. Five single slices of patients, each repeated to a slab of 48 mm, were refused as
`no_heart` by the same heart network, and so is the scan of a calcium phantom without chambers.
{}

"""

ENSEMBLE = """# Five U-Nets that vote, Gogin 2021

Written by `python tools/bench/table.py` from the JSON files in `tools/bench/results`.

## Table 1

`python -m cacjax.experiments ensemble-table1 --size small --out DIR` trains five members on each of three sets (phantoms by category:
J1 80, J1 + J2 402, J1 + J2 + AD 763, and 20 for the choice of the best epoch), and scores 100 held-out gated phantoms, drawn in equal
parts from the categories A to E by their true mass of calcium (by their Agatston scores they are 26, 9, 25, 20, 20).

Below the published figures, and not trained to the end: 500 steps of two volumes are 12 epochs of J1 and 1.3 of the largest set, which
so shows nothing of what more scans give; the paper does not print its number of steps. Every error of all three ensembles is a category
too high. In the scans furthest off (`outliers_ad.png` beside the evaluation) calcium of the aortic valve, the mitral valve and the aorta is
called coronary, as the paper found for the mitral valve, or parts of the LCX are missed. The ensemble is above the mean of its
members in every row, by less than its interval.
{}
"""
ENSEMBLE_BRIGHT = """
## Learned where it can count

Above, by the `small` of before: 500 steps, the cross-entropy of every cell. Since only what reaches 130 HU in the scan counts, `small` now
weighs cells of 107 HU and more fifty times the others, calcified ones ten times these, and takes 1,000 steps:
`python -m cacjax.experiments ensemble-table1 --size small --only j1 ad --out DIR` (35 to 45 minutes of one core of 2, AMD EPYC, 90 to
100 GFLOP/s a core, other work on the second, for a training of five members; for AD 30 more to make 783 phantoms. J1 was trained
without the sets J2 and AD, from which it takes nothing). On held-out scans of the phantom of now, on which the controls are lower, all
figures of J1 are a little higher than above, by less than their intervals; the C-index is that published for J1 (.939). Ten times the
scans, in as many steps, give no more: a thousand steps of two are 25 epochs of J1 and 2.6 of the largest set.
Still most scans that are far off have calcium of the aortic or the mitral valve that is called coronary: cells of 3 mm about a heart of
144 mm do not show five networks of this width where it lies.
{}
"""
ENSEMBLE_CELLS = """
## What the cells keep

`python -m cacjax.experiments ensemble-cells --size small --out DIR`, of the same scans. The paper restores what the downsampling loses
and does not say how; `max_components` is ours (areas of three pixels of 130 HU and more, as its score counts). `max` and `mean` bring the
same cells to 130 HU and differ in how bright they are. The phantom's pericardium reaches ribs in part, which counts as other cells in
every row.
"""

CACNET = """# CAC-Net, Zhang 2018

Written by `python tools/bench/table.py` from `tools/bench/results/cacnet_parts.json`.

`python -m cacjax.experiments cacnet-parts --size small --fold 0 --out DIR`, then with `--fold 1`: the whole and its two halves, each
trained for 1,500 steps of one crop on 80 of 100 gated phantoms, of which the 20 others are the test; two folds of five, one seed. On one
core of 2 (AMD EPYC, 210 GFLOP/s in a product by both, other work on the second) the trainings of a fold took 42 (CAC-Net), 15 (3D U-Net)
and 31 minutes (U-DenseNet).

What the rows say. The 3D U-Net alone reaches what is published for it by volume (.92 of .91), and its Agatston scores agree by an ICC of
.98; the whole, which should be better, is worse: by volume the U-Net has .08 more (.03 to .15), by two folds the first difference that
holds. The whole and the U-DenseNet cannot be told apart. All lie far above what brightness alone does (.46). Only the U-DenseNet tells the
arteries apart (right artery .99); CAC-Net calls no calcium LCX, in the first fold all of it LAD. So at this size the 3D part behind the 2D
one, of four channels at full resolution, is what has not learned by then: a longer training of a wider one is what is missing. The scans
furthest off are in `evaluation/NETWORK/foldK/outliers_NETWORK.png`: of the second fold long lesions of the LCX and RCA of which CAC-Net
finds some voxels, but less than half, of the first also calcium of the aortic valve, the mitral annulus and the aorta that is called
coronary. By number most of what is missed are lesions of a few voxels.

A component above 130 HU of which at least half is detected counts whole (`scoring.least_share`; of shares of .2, .3, .5 and .7, read on
the scans of the first fold, half, the majority, is best for CAC-Net and the 3D U-Net, .3 for the U-DenseNet, by .04). Without it, what is
detected counted alone, the dim rims of lesions were missed: F1 by volume .79 (CAC-Net), .80 (U-DenseNet) and .82 (3D U-Net), by number
.68, .74 and .65, ICC of Agatston .94, .96 and .97, by the same networks of that fold.
{}
"""

CYCLEGAN = """# Calcium CycleGAN, van Velzen 2022

Written by `python tools/bench/table.py` from `tools/bench/results/cyclegan_parts.json` and `cyclegan_pairs.json`.

## Two scans of a patient

`python -m cacjax.experiments cyclegan-pairs --size small --out DIR`: 160 pairs of phantom scans for radiotherapy planning, one in free
breathing and one in breath-hold, 276 of the 320 scans with calcium that can be seen, 76 pairs with calcium from 130 HU in both. One seed,
learned from 315 pairs, as many patients as the paper has, each stage by a command of its own (`cacjax.train --config cyclegan.py:small`;
the heart network is that of seed 2 below); one training of the two-stage CNN (`second.py:tiny,rtp`).

What the rows say. A worse map has a lower relative difference (no gate .19; a smoothing filter .07), since the same anatomy makes the
same false positives twice: it counts only beside the three columns about true calcium. As `small` scores, by likely parts, the map
differs by .31 between two scans where scoring at 130 HU differs by .44, 29 % less (the CT values by .33), .85 of the scans with visible
calcium are found and .09 of those without; an observer at 130 HU finds .66 and none. .84 of the map lies at true calcium, and it follows
the true mass by .87 (Spearman) and .95 (Pearson). Its ICC of .95 is below that of 130 HU, .96. With the true slices in the gate's place
the three columns are .83, .95 and .98, with the true map 1.00, .99 and 1.00. The two-stage CNN, which was shown where calcium is and not
only in which slices, finds .84 of the scans at .07 FP, and differs by .44, as everything at 130 HU does. By artery the phantom's LAD is
found best and its LCX worst, by every row; in the paper the RCA is worst.

Likely parts. A gate of slices opens or shuts a whole slice; here a connected part of the map stays or falls as a whole, by the mean of
the slices' probabilities, weighted by the map. The least mean, .6, is the lowest that leaves at most .14 of the scans without calcium
positive, of these 44 and of 29 in 60 other pairs together (.137); limits of .5, .6 and .7 give differences of .29, .31 and .35,
sensitivities of .87, .85 and .83, and .21, .09 and .09 of the scans without calcium here, .24, .21 and .17 of the 29.

The gate was what lost most: with 315 pairs for 64, and 9,000 steps for 3,000, it reaches by slice an accuracy of .90, a sensitivity of
.78 and a false-positive rate of .08 (published .93, .78, .06; by 64 pairs .81 to .86, .72 to .76, .11 to .18), an area under the curve of
.94 (.88), and by a scan's largest probability finds .88 of the scans with calcium where .14 of those without are positive (.75 to .86).
{}
"""
CYCLEGAN_BEFORE = """## Before: 64 pairs to learn from

`cyclegan-pairs --size small --seeds 3` when `small` learned from 64 pairs and its gate opened slices: three seeds of heart, gate and GAN
(seed 2 by one command; of seeds 0 and 1 the GAN and the heart were trained before the gate had its form of now, which was then trained
alone and joined to them). With the least lesion the map differs by .35, .90 of the scans with visible calcium are found and .38 of those
without; by the least mass that leaves .14 of these positive, .80 (.65 to .88). The generator takes .44 of the calcium out, that of above
.38.

Three gates were trained on the same slices (area under the curve of the slices of the first 160 scans' true hearts; sensitivity of scans
by the largest probability that leaves .14 of those without calcium positive): one slice, a mean over places (.86 by seed 0 on all 320
scans, .90 and .75 by seed 1); with its neighbours (.89, .67); its strongest place and a running average of the weights, too, as `small`
has it now (.90, .73 by seed 0; .91, .78 by seed 1). The mean of three gates has .91 and .82. Before that (`cyclegan_removal.json`, one
seed, the first of these gates) .64 of the scans without calcium were positive, later .48 of the same GAN; there the second generator, the
second discriminator and the cycle changed no column by more than its interval. Of what is false without a gate, 24 % lies on slices with
calcium, 11 % at calcium of the aorta or a valve, and 7 % of the whole map outside of the true heart (`removal`, 80 scans).
{}
"""
CYCLEGAN_NOTE = """The scan with the median mass of calcium, slices with most of the map, without a gate: scan, twin, map, true calcium.

![scan, twin, map and true calcium](../pictures/cyclegan.png)
"""

UDA_FLOW = """# Adaptation, Zhai 2022, Table 2

Written by `python tools/bench/table.py` from `tools/bench/results/uda_flow.json` and `uda_table2.json`.

## The paper's flow

`python -m cacjax.experiments uda-table2 --size small --seeds 3 --only full full_without_adversary full_without_labels oracle --out DIR`:
source network from 60 chest CT, adapted with 60 labelled cardiac CT of other patients and 32 CCTA without labels (the full method), its
controls, and rows that need no adaptation. Medians of three seeds of `tiny` networks at the settings of size `small` (pools of 16 patches,
20 critic updates to one, 2,000 before the generator moves, 250 blocks): an hour of one core a seed (AMD EPYC, 50 GFLOP/s a core), 40
minutes at 90 GFLOP/s and without a picture of every scan, as the command is now (seed 2, joined by `--with`).

What the rows say. The pattern is not the paper's. Pooled F1 on CCTA by seed, with reduction of false positives: source network .27, .44,
.50; adapted by labelled cardiac CT alone (without L_adv) .45, .41, .45; full method .48, .28, .46; a network trained on labelled CCTA .55,
.50, .51; no network at best .40. The full method gains .22 (.05 to .41) over its source in the first seed, where the source network finds
17 % of the calcium by volume, and loses .17 and .04 in the others, where it finds 83 and 51 %: how much a source network finds in CCTA
differs more from seed to seed than any adaptation makes of it. The critic always finds more (.82, .85, .48 of the calcium), at 110, 302 and
44 mm³ of false positives a scan, where the aim was 20. That a network which has seen labelled CCTA of the same kind is hardly better says
that not the shift between scans limits all rows. Neither what the network sees around nor the number of scans does alone: trained on
labelled CCTA as the oracle (`cacjax.train --config lessmann.py:tiny --config.data.splits.source_train.protocol=ccta`, one seed, 24 other
CCTA), a network has a pooled F1 of .63 as it is; of .51 with dilations to 32, which see 43 mm where it sees 21; of .57 with these, twice
the steps and the shipped detector's strata; of .55 with four times the scans and twice the steps, when it finds .99 of the calcium at 121
mm³. The worst of its scans, and of the adapted network's (`outliers_full.png`), show what passes for calcium: stents, streams of contrast
medium in the right ventricle and atrium, and coronary lumen that is brighter than the aorta; some of what is missed was found and called
calcium of a valve or the aorta. Without L_cls the critic alone spoils the network. One setting was measured, where three were to be.
{}
"""
UDA = """
## The arms of before

`python -m cacjax.experiments uda-table2 --size small --seeds 3 --out DIR` on 40 phantom scans a protocol, about 45 minutes a seed on
2 CPU cores (AMD EPYC of family 26; up to twice that on older ones), before that command had the paper's flow. It was on the CCTA phantoms
of before 2026-11-30, which a threshold alone solved; those of now have a bolus with a timing of its own in each compartment, streams and
streaks of contrast medium, metal and more calcium of the valves ([phantom.md](phantom.md)).
Medians of three seeds; in brackets what is published of the same flow (other data: theirs are not public). Sensitivity, FP and F1 are means
over all scans; F1, CAC: over those with coronary calcium; FP, no CAC: share of those without in which something was found; pooled F1 with
its 95 % bootstrap interval over scans; over its source: gain in pooled F1 over the network that an arm started from, on the same scans,
resampled together; AP: average precision over voxels from the scan threshold up within the heart. The phantom's pericardium is the heart,
not dilated.
"""
UDA_NOTE = """What was trained is `tiny`, not the published form: one orientation, 16 channels, a critic of 5 layers. Source and adaptation
learn from the same cardiac scans, in the last two rows from the same chest scans; the paper's flow is not among them.

Without adaptation F1 falls (pooled .86 on non-contrast scans, .02 on CCTA without reduction of false positives, .76 with it). `adapted`
does not reliably beat its source network, nor what L_cls alone makes of it: it gains where the source network is weak (seed 1: .60 to .85),
gains nothing where that is good, and once it spoiled it (seed 2: .78 to .29). In scans with calcium F1 rises (.63 to .70), but more of the
others are marked (.35 to .53). The critic by domain does better here than the joint one. What serves CCTA best needs no critic: the
contrast-removing view, random tone curves in source training and three orientations reach .84 to .89 in every seed. At seed 2 the critics
without batch statistics (gradient penalty, spectral norm) were born dead: no adversarial training took place, and those medians are of two
seeds.

Each seed's pooled F1 (network: seeds in order):
"""
