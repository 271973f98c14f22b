"""What the paper printed: its worked example, Table 1 and Table 2. Nothing here is computed by us.

Source: Sullivan & Koller, "GRPO is Secretly a Process Reward Model", ICML 2026, arXiv 2509.21154.
"""

from __future__ import annotations

# Figure 1: six completions of one prompt, a letter a token, and their outcome rewards.
WORKED_EXAMPLE = ("A B C D", "A B E F H I", "J K L M", "J K L N Q S T", "J K L N Q U", "V W Y Z")
WORKED_REWARDS = (0.5, 0.5, 1.0, 0.0, 0.0, 0.5)

# Table 1, the trap: (n, r_neg) → target frequency of GRPO, of λ-GRPO; five seeds, GPT-2 small.
TABLE1 = {
    (1, -0.5): (0.3995, 0.5663),
    (1, -1.0): (0.0000, 0.7535),
    (1, -1.5): (0.2000, 0.4463),
    (2, -0.5): (0.1980, 0.4292),
    (2, -1.0): (0.0488, 0.3612),
    (2, -1.5): (0.0000, 0.3820),
}

# Of Table 1, second-hand (a reading of the paper's §4.3, footnote 2, that we have not seen): its learning rate, and the
# one at which neither objective converged to the target. Its optimiser is not stated.
TABLE1_LEARNING_RATE = 1e-5
TABLE1_TOO_LARGE = 5e-5

TABLE2_BENCHMARKS = ("AIME24", "MATH-500", "AMC23", "Minerva", "OlympiadBench")
# Table 2: model, objective and β → (accuracy, standard error) on each of TABLE2_BENCHMARKS. The caption calls the
# second a confidence interval; it is √(p(1 − p)/(n − 1)), one standard error: a 95% interval is about twice as wide.
TABLE2 = {
    "qwen-base": (
        *((0.2000, 0.0743), (0.8300, 0.0168), (0.7500, 0.0693)),
        *((0.2978, 0.0278), (0.5096, 0.0193)),
    ),
    "qwen-grpo-0": (
        *((0.3333, 0.0875), (0.7660, 0.0190), (0.6250, 0.0775)),
        *((0.2500, 0.0263), (0.4444, 0.0191)),
    ),
    "qwen-lambda_grpo-0": (
        *((0.3667, 0.0895), (0.8460, 0.0162), (0.7500, 0.0693)),
        *((0.2904, 0.0276), (0.5348, 0.0192)),
    ),
    "qwen-grpo-0.04": (
        *((0.3000, 0.0851), (0.8660, 0.0152), (0.7500, 0.0693)),
        *((0.2610, 0.0267), (0.5200, 0.0192)),
    ),
    "qwen-lambda_grpo-0.04": (
        *((0.4000, 0.0910), (0.8340, 0.0167), (0.8000, 0.0641)),
        *((0.2978, 0.0278), (0.5378, 0.0192)),
    ),
    "llama-base": (
        *((0.0, 0.0), (0.2280, 0.0188), (0.0750, 0.0422)),
        *((0.0478, 0.0130), (0.0563, 0.0089)),
    ),
    "llama-grpo-0": (
        *((0.0, 0.0), (0.2300, 0.0188), (0.0750, 0.0422)),
        *((0.0551, 0.0130), (0.0607, 0.0089)),
    ),
    "llama-lambda_grpo-0": (
        *((0.0, 0.0), (0.2620, 0.0197), (0.1250, 0.0530)),
        *((0.0515, 0.0134), (0.0622, 0.0092)),
    ),
    "llama-grpo-0.04": (
        *((0.0, 0.0), (0.2180, 0.0185), (0.1750, 0.0608)),
        *((0.0515, 0.0134), (0.0533, 0.0087)),
    ),
    "llama-lambda_grpo-0.04": (
        *((0.0333, 0.0333), (0.2560, 0.0195), (0.0750, 0.0422)),
        *((0.0735, 0.0159), (0.0489, 0.0083)),
    ),
}
# Table 2: the averages over the five benchmarks, as printed.
TABLE2_AVERAGES = {
    "qwen-base": 0.5175,
    "qwen-grpo-0": 0.4837,
    "qwen-lambda_grpo-0": 0.5576,
    "qwen-grpo-0.04": 0.5394,
    "qwen-lambda_grpo-0.04": 0.5739,
    "llama-base": 0.0814,
    "llama-grpo-0": 0.0842,
    "llama-lambda_grpo-0": 0.1001,
    "llama-grpo-0.04": 0.0996,
    "llama-lambda_grpo-0.04": 0.0973,
}
