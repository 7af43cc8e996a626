"""Faults that the tests must notice: where, what stands there, what would stand there instead, and the test that then fails."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One fault: `old`, which stands in `file` exactly once, becomes `new`. test: file and name, below tests/."""

    file: str
    what: str
    old: str
    new: str
    test: str

    def into(self, text) -> str:
        """The text of the file with the fault. Raises ValueError where it does not hold `old` once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} must hold {self.old!r} once, got {text.count(self.old)} times: a fault of another tree")
        return text.replace(self.old, self.new)


STEPS = "test_uda_steps.py::test_steps_equal_torch_in_float64"
PUBLISHED, CODE, MMD, SOURCE, TWICE = (
    f"{STEPS}[{case}]" for case in ("published", "code", "code, mmd, joint", "source", "source, softmax twice")
)
FOLDED = "test_uda.py::test_the_affine_of_the_target_is_what_critic_and_answer_see"
CONSTRAINED = "test_uda.py::test_other_constraints_than_clipping"
NUMBERS = "test_uda.py::test_the_published_form_has_the_numbers_of_the_paper"
UNLABELLED = "test_uda.py::test_the_target_is_other_scans_and_has_no_labels"
ON_A_MAP = "test_uda_steps.py::test_a_map_is_supervised_voxel_by_voxel"
RULES, NOISE = "test_scores.py::test_small_arrays_tell_rules_apart", "test_scores.py::test_rules_on_noise_equal_the_plain_loop"
BY_HAND = "test_program.py::test_equals_full_evaluation_step_by_step"
CORNERS, LEAST = (f"test_lesions.py::test_grow_{name}" for name in ("modes_differ_at_corners_and_at_the_heart", "lower_limits"))
SURE = "test_lesions.py::test_grow_asks_for_a_sure_voxel"
WHOLE, MOST = (f"test_lesions.py::test_grow_{name}" for name in ("takes_the_whole_component_and_its_majority", "upper_limit_is_inclusive"))
WEIGHTS, VOLTAGES = "test_scores.py::test_weights", "test_scores.py::test_voltages"
RMSPROP = "test_optimise.py::test_rmsprop_has_torch_semantics"
THRESHOLD_ALONE = "test_experiments.py::test_a_threshold_alone_by_hand"
NO_HEART = "test_heart.py::test_what_is_no_heart_is_refused_by_number"
OUTSIDE = "test_body.py::test_outside_of_the_body_nothing_is_bright"
SEEN = "test_program.py::test_the_network_sees_the_heart_and_what_it_reads_around"
AORTA = "test_threshold.py::test_region_in_the_authors_layout"

BY_FILE = {  # (what, old, new, test)
    "cacjax/tasks/uda.py": (
        ("the adversarial loss has the other sign", "= -adversarial_value(", "= adversarial_value(", PUBLISHED),
        ("the adversarial loss has no weight", "config.adversarial_weight * adversarial", "0.0 * adversarial", PUBLISHED),
        ("L_cls is left out", "config.classification_weight * classes", "0.0 * classes", PUBLISHED),
        ("the critic has the domains swapped", 'nets["critic"], source, target, key', 'nets["critic"], target, source, key', PUBLISHED),
        ("the generator is aligned on the source", 'heads, batch["target"]["hu"])', 'heads, batch["source"]["hu"])', PUBLISHED),
        ("no adversarial gradient", "cut_windows(target, config))", "cut_windows(lax.stop_gradient(target), config))", PUBLISHED),
        ("the discrepancy has no weight", "config.mmd_weight * apart", "0.0 * apart", MMD),
        ("statistics by domain are joint", "[source, target]), system.groups)", "[source, target]), min(system.groups, 1))", PUBLISHED),
        ("a joint critic sees the target alone", "if system.groups == 1:", "if system.groups < 0:", MMD),
        ("the generator learns at the critic's rate", "(config.critic, config.generator))", "(config.critic, config.critic))", PUBLISHED),
        ("no decay in the adaptation", ", weight_decay=config.weight_decay)", ")", PUBLISHED),
        ("the critic is not clipped", "clip(params, critic.clip)", "params", PUBLISHED),
        ("the same windows in every critic update", "lambda a: a[i], picks", "lambda a: a[0], picks", PUBLISHED),
        ("fewer critic updates at first", "step < first, count, fewer", "step < first, fewer, count", CODE),
        (
            "the generator moves in pre-training",
            "state.step >= config.pretrain_blocks",
            "state.step >= 0",
            "test_uda.py::test_generator_rests_in_pretraining_and_moves_after",
        ),
        (
            "the moments are never at rest",
            "lax.cond(step < system.config.pretrain_blocks",
            "lax.cond(step >= 0",
            "test_uda.py::test_moments_are_measured_in_pretraining_and_rest_after",
        ),
        (
            "the critic sees the target unmatched",
            '"target": for_target(generator.params, affine)}',
            '"target": generator.params}',
            FOLDED,
        ),
        ("the answer is unmatched", 'for_target(params["generator"], params.get("affine"))', 'params["generator"]', FOLDED),
        (
            "the gradient penalty is a reward",
            "loss += critic.penalty_weight",
            "loss -= critic.penalty_weight",
            "test_uda.py::test_a_gradient_penalty_brings_the_slope_to_one",
        ),
        ("no spectral limit", "spectral(params),", "params,", f"{CONSTRAINED}[spectral]"),
        (
            "a dead critic goes unnoticed",
            'if metrics["critic_gradient"] or',
            'if metrics["critic_gradient"] >= 0 or',
            "test_uda.py::test_a_dead_critic_ends_the_training_and_names_the_step",
        ),
    ),
    "cacjax/tasks/lessmann.py": (
        ("the label of another plane", 'centre(batch["label"][:, 0]', 'centre(batch["label"][:, 1]', PUBLISHED),
        (
            "the main head's second softmax is lost",
            "(logits, labels, double_softmax=supervision.double_softmax_main)",
            "(logits, labels)",
            CODE,
        ),
        ("an auxiliary head's second softmax is lost", "=config.supervision.double_softmax_auxiliary", "=False", TWICE),
        ("deep supervision is dropped", "config.supervision.auxiliary_weight * model.planes", "0.0", SOURCE),
        ("deep supervision is a mean over planes", "auxiliary_weight * model.planes", "auxiliary_weight", SOURCE),
        ("no decay in source training", "weight_decay=config.optimiser.weight_decay", "weight_decay=0.0", SOURCE),
        ("a map has no weights", "weights=weights, ", "", ON_A_MAP),
        ("weights of the wrong slice", "m : m + n, slab // 2]", "m : m + n, 0]", ON_A_MAP),
        ("weights of the wrong pixels", 'hu = batch["hu"][:, 0, m : m + n, m : m + n', 'hu = batch["hu"][:, 0, :n, :n', ON_A_MAP),
    ),
    "cacjax/models/critic.py": (
        (
            "a critic without statistics has a last rectifier",
            "if groups or i < len(self.channels) - 1:",
            "if True:",
            "test_uda.py::test_a_critic_without_statistics_is_alive_whatever_the_seed",
        ),
        ("another epsilon of the critic", "eps: float = 1e-5", "eps: float = 1e-3", PUBLISHED),
    ),
    "cacjax/models/dilated.py": (
        (
            "the centre is a pixel off",
            "middle = maps.shape[1] // 2",
            "middle = maps.shape[1] // 2 - 1",
            "test_models.py::test_centre_sees_its_receptive_field_and_nothing_else",
        ),
    ),
    "cacjax/inference/planes.py": (
        ("another intensity scale", "- 130.0) / 1130.0", "- 130.0) / 1000.0", "test_planes.py::test_normalise"),
        ("P(CAC) without the RCA", "probability[:, 1:4]", "probability[:, 1:3]", "test_planes.py::test_every_voxel_equals_its_patch"),
    ),
    "cacjax/kernels/losses.py": (
        (
            "the critic minimises the gap",
            "target_values.mean() - source_values.mean()",
            "source_values.mean() - target_values.mean()",
            PUBLISHED,
        ),
        ("a discrepancy of sums", "- kernel[m:, :m].mean()", "+ kernel[m:, :m].mean()", "test_losses.py::test_mmd_by_hand"),
        ("a gradient through the bandwidth", "jax.lax.stop_gradient(squared).sum()", "squared.sum()", MMD),
    ),
    "cacjax/optimise.py": (
        ("another memory of RMSprop", "decay=0.99", "decay=0.9", RMSPROP),
        ("epsilon within the root", "eps_in_sqrt=False", "eps_in_sqrt=True", RMSPROP),
        ("biases decay", "jnp.ndim(p) > 1", "jnp.ndim(p) > 0", "test_optimise.py::test_adam_decays_kernels_and_not_biases"),
    ),
    "configs/uda.py": (
        ("the target's pool is of the source", 'pool_target = stream("target_train"', 'pool_target = stream("source_train"', UNLABELLED),
        (
            "the target has labels",
            'stream("target_train", count=(16,), strata',
            'stream("target_train", labelled=True, count=(16,), strata',
            UNLABELLED,
        ),
        ("another alpha", "config.classification_weight = 2.0", "config.classification_weight = 0.5", NUMBERS),
        ("another clip", "config.critic.clip = 0.1", "config.critic.clip = 0.01", NUMBERS),
    ),
    "cacjax/kernels/rules.py": (
        ("a weight boundary moved", "(130.0, 200.0, 300.0, 400.0)", "(130.0, 200.0, 300.0, 401.0)", WEIGHTS),
        ("4 neighbours for 8", "connectivity: int = 8", "connectivity: int = 4", f"{RULES}[D 8]"),
        (
            "the thickness for the increment",
            '"increment": dz / 3.0',
            '"increment": (slice_thickness_mm or 3.0) / 3.0',
            f"{RULES}[F increment]",
        ),
        ("other limits at 100 kV", "AtVoltage(100, 147.0)", "AtVoltage(100, 130.0)", VOLTAGES),
        ("a voltage changes nothing", "threshold_hu=at.threshold_hu, ", "", VOLTAGES),
        ("the minimum is rounded down", "math.ceil(exact - 1e-9)", "math.floor(exact)", "test_scores.py::test_minimum_sizes"),
        ("pixels are taken for square", "return dy * dx * {", "return dy * dy * {", f"{NOISE}[default]"),
    ),
    "cacjax/kernels/scores.py": (
        ("a weight from above its limit", "peak_hu[..., None] >= jnp", "peak_hu[..., None] > jnp", WEIGHTS),
        (
            "the threshold strict for inclusive",
            "hu >= numbers.threshold_hu, connectivity",
            "hu > numbers.threshold_hu, connectivity",
            f"{RULES}[A >=]",
        ),
        ("the threshold inclusive for strict", "if rule.strict:", "if False:", f"{RULES}[A >]"),
        ("the least lesion is too small", ">= numbers.least", "> numbers.least", f"{RULES}[E4]"),
        ("one peak a lesion", 'in_3d and peak == "slice"', "False", f"{RULES}[G slice of a lesion]"),
        (
            "lesions in 2D",
            "(connectivity, 26)",
            "(connectivity, 8)",
            "test_scores.py::test_pieces_of_a_lesion_in_one_slice_share_a_peak",
        ),
        ("mass by litres", "factor / 1000.0", "factor / 100.0", f"{NOISE}[default]"),
        ("categories begin at their limit", '"right" if scheme.closed', '"left" if scheme.closed', "test_scores.py::test_categories"),
    ),
    "cacjax/classes.py": (
        (
            "the aorta is coronary",
            "CORONARY = (1, 2, 3, 7)",
            "CORONARY = (1, 2, 3, 4, 7)",
            "test_scores.py::test_arteries_are_scored_apart_and_add_up",
        ),
    ),
    "cacjax/kernels/reduction.py": (
        (
            "the modes' neighbours swapped",
            "connectivity=6 if in_paper else 26",
            "connectivity=26 if in_paper else 6",
            CORNERS,
        ),
        ("one voxel in the heart is enough", "jnp.maximum(1, shares[1] * size)", "1", CORNERS),
        (
            "one detected voxel is enough",
            " & (votes.sum(0) >= shares[0] * size)",
            "",
            "test_lesions.py::test_grow_asks_for_a_share_of_a_component",
        ),
        ("the upper limit is exclusive", "(size > most)", "(size >= most)", MOST),
        ("the lower limit is rounded down", "least = jnp.ceil(min_mm3", "least = jnp.floor(min_mm3", LEAST),
        ("a lesion is of the rarest class", "left, 1 + jnp.argmax(votes, 0)", "left, 1 + jnp.argmin(votes, 0)", WHOLE),
        ("growing from above the threshold", "above = hu >= threshold_hu", "above = hu > threshold_hu", WHOLE),
        ("a lesion needs no sure voxel", "large, outside, certain == 0)", "large, outside)", SURE),
        ("specks of two voxels stay", "size[component - 1] > 2", "size[component - 1] > 1", LEAST),
    ),
    "cacjax/inference/candidates.py": (
        (
            "detected voxels below the threshold stay",
            "mask, removed = jnp.where(case.hu >= case.threshold_hu, detected, 0), {}",
            "mask, removed = detected, {}",
            f"{BY_HAND}[none-False-0]",
        ),
        ("the heart is not dilated", "spatial.spread(case.heart, ball, reach=how.reach)", "case.heart", f"{BY_HAND}[paper-True-0]"),
    ),
    "cacjax/scoring/threshold.py": (
        ("the aorta's threshold is mean + 2 SD", "DEVIATIONS = 3.0", "DEVIATIONS = 2.0", AORTA),
        ("whole HU are rounded", "float(int(hu)) if", "float(round(hu)) if", AORTA),
    ),
    "cacjax/experiments/uda.py": (
        (
            "two arms may have the same figures",
            "a.network != b.network and one == other",
            "a.network != b.network and one is other",
            "test_experiments.py::test_two_networks_with_the_same_figures_are_refused",
        ),
        (
            "a scan whose calcium was missed counts as clean",
            "calcified = tp + fn > 0",
            "calcified = tp > 0",
            "test_experiments.py::test_scans_with_and_without_calcium_apart",
        ),
    ),
    "cacjax/kernels/anatomy.py": (
        ("no heart: tissue counts as lung", "LUNG_HU = 15.0, (-950.0, -500.0)", "LUNG_HU = 15.0, (-950.0, 500.0)", NO_HEART),
        ("no heart: a chamber may lack", "(0.0 if cut else low, high)", "(0.0, high)", NO_HEART),
        ("no heart: places mirrored", "middles[0] - middles[1]", "middles[1] - middles[0]", NO_HEART),
    ),
    "cacjax/scoring/body.py": (
        ("body: what hangs on to it is part of it", "THIN_MM = 6.0", "THIN_MM = 1.0", OUTSIDE),
        ("body: lungs at the edge of the field of view are air", "LUNG_HU = -950.0", "LUNG_HU = -500.0", OUTSIDE),
    ),
    "cacjax/kernels/grids.py": (
        ("the network sees nothing beyond the heart's box", "np.minimum(high + halo, network)", "high", SEEN),
        ("what the network sees begins at the scan's first voxel", "spatial.rows(there, start, stop)", "there", SEEN),
    ),
    "cacjax/inference/rectangles.py": (
        (
            "rectangles are computed in the smallest form, whether they fit or not",
            "jnp.where(fits, cost, np.inf)",
            "cost",
            "test_planes.py::test_chunks_and_sizes_change_nothing",
        ),
    ),
    "cacjax/tasks/ensemble.py": (
        (
            "all cells weigh the same",
            "losses.cross_entropy(either, real, weights=weights)",
            "losses.cross_entropy(either, real)",
            "test_ensemble.py::test_what_is_no_coronary_calcium_is_learned_where_the_scan_could_count_it",
        ),
    ),
    "cacjax/data/scans.py": (
        (
            "calcium of the coronary arteries is other calcium, too",
            '"other_calcium": (label > 0) & ~coronary',
            '"other_calcium": label > 0',
            "test_data.py::test_points_lie_in_their_stratum[other_calcium]",
        ),
    ),
    "cacjax/report/result.py": (
        (
            "a picture does not say that phantoms trained its networks",
            'if "research_only" in told else ""',
            'if "research_only" not in told else ""',
            "test_report.py::test_who_sees_a_picture_alone_reads_that_phantoms_trained_its_networks",
        ),
    ),
    "cacjax/experiments/margins.py": (("no network has no margin", "row.threshold_hu + margin)", "row.threshold_hu)", THRESHOLD_ALONE),),
    "cacjax/evaluation/metrics.py": (
        (
            "F1 without what was missed",
            "(2 * counts.tp + counts.fp + counts.fn + EPSILON)",
            "(2 * counts.tp + counts.fp + EPSILON)",
            "test_metrics.py::test_f1_is_the_harmonic_mean",
        ),
    ),
}
FAULTS = tuple(Fault(file, *fault) for file, faults in BY_FILE.items() for fault in faults)
